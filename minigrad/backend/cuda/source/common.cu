// The CUDA kernels that kernels.py launches. REAL is float or double: the file is compiled once for each. With float and
// TF32=1 the tensor cores take the products of `correlate` and `weight_gradient`, from factors rounded to TF32; with TF32=3
// three of their products make one that keeps 21 bits of each factor.
//
// Arrays are contiguous and images NHWC, with the sizes that ops/conv.py names: a convolution maps (N, H, W, C) to
// (N, OH, OW, F) with weight (KH, KW, C, F).
//
// Sums over pixels are taken without atomics: each block writes its own row of `partials` (blocks, 2, C), in double, and
// `finish_sums` or `finish_moments` adds the rows in their order; or its own share of a weight's gradient, and `add_shares`
// adds those. The same step twice therefore gives the same bits.
//
// Blocks have one dimension. Where a kernel sees its threads as rows, `lane` is the place in a row and `ty` the row.

typedef REAL real;
struct alignas(16) real4 { real v[4]; };

__device__ real positive(real x) { return x > 0 ? x : x != x ? x : 0; }  // max(x, 0), where NaN stays

// ---- which pixel of which image: division, which a GPU has no instruction for ----

// m / d for 0 <= m < 2^31 as m * ceil(2^(31 + shift) / d) >> 31 >> shift, exact if 2^shift >= d (Granlund, Montgomery:
// Division by Invariant Integers using Multiplication, theorem 4.2).
struct Divisor {
    int d, shift;
    unsigned factor;

    __device__ Divisor(int divisor) : d(divisor > 1 ? divisor : 1), shift(0) {
        while (1u << shift < (unsigned)d) shift++;
        factor = ((1ull << (31 + shift)) + d - 1) / d;
    }
    __device__ int quotient(int m) const { return (unsigned)((unsigned long long)(unsigned)m * factor >> 31) >> shift; }
};

struct Place { int image, row, col; };

struct Pixels {  // of images with so many rows and columns
    Divisor rows, cols;

    __device__ Pixels(int rows, int cols) : rows(rows), cols(cols) {}
    __device__ Place place(int m) const {
        int line = cols.quotient(m), image = rows.quotient(line);
        return {image, line - image * rows.d, m - line * cols.d};
    }
};
