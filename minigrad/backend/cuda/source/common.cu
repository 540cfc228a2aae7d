// The CUDA kernels that kernels.py launches. REAL, in which they compute, is float or double. X_REAL and Y_REAL, which the
// arrays x and y of a kernel (and others of their shapes) hold in memory, are REAL or bf16. The file is compiled once for each
// set. With float and PRECISION=TF32 the tensor cores take the products of `correlate` and `weight_gradient`, from factors
// rounded to TF32; with BF16, from factors rounded to bf16; with TF32X3, three products of TF32 make one that keeps 21 bits of
// each factor.
//
// Arrays are contiguous and images NHWC, with the sizes that ops/conv.py names: a convolution maps (N, H, W, C) to
// (N, OH, OW, F) with weight (KH, KW, C, F).
//
// Sums over pixels are taken without atomics: each block writes its own row of `partials` (blocks, 2, C), in double, and
// `finish_sums` or `finish_moments` adds the rows in their order; or its own share of a weight's gradient, and `add_shares`
// adds those. The same step twice therefore gives the same bits.
//
// Blocks have one dimension. Where a kernel sees its threads as rows, `lane` is the place in a row and `ty` the row.

#define FP32 0  // no tensor cores
#define TF32 1
#define TF32X3 2
#define BF16 3

#ifdef __CUDACC__  // not where the tests run this file on a CPU
// Two numbers rounded to bf16: 7 bits after the point, ties to even. The first one is in the lower half.
__device__ unsigned pack_bf16(float first, float second) {
    unsigned bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
    return bits;
}
#endif

struct bf16 {  // the upper half of a float
    unsigned short bits;

    bf16() = default;
    __device__ explicit bf16(float x) : bits(pack_bf16(x, 0)) {}
    __device__ explicit operator float() const { return __uint_as_float((unsigned)bits << 16); }
};

typedef REAL real;
typedef X_REAL x_real;
typedef Y_REAL y_real;

// Four numbers as an array holds them. Those of bf16 stay in pairs: were they taken apart as soon as they are read, a thread
// would wait for the memory there.
template <class T>
struct alignas(16) Four {
    T v[4];

    __device__ T get(int e) const { return v[e]; }
    __device__ void set(int e, T x) { v[e] = x; }
};
template <>
struct alignas(8) Four<bf16> {
    unsigned pairs[2];  // the first number in the lower half

    __device__ bf16 get(int e) const {
        bf16 x;
        x.bits = pairs[e / 2] >> e % 2 * 16;
        return x;
    }
    __device__ void set(int e, bf16 x) {
        pairs[e / 2] = e % 2 ? (pairs[e / 2] & 0xffff) | (unsigned)x.bits << 16 : (pairs[e / 2] & 0xffff0000) | x.bits;
    }
};
typedef Four<real> real4;

// Four numbers to compute with, and as an array holds them.
__device__ real4 reals(const real4 &n) { return n; }
__device__ real4 reals(const Four<bf16> &n) {
    return {__uint_as_float(n.pairs[0] << 16), __uint_as_float(n.pairs[0] & 0xffff0000),
            __uint_as_float(n.pairs[1] << 16), __uint_as_float(n.pairs[1] & 0xffff0000)};
}
template <class T>
__device__ void assign(Four<T> &to, const Four<T> &n) { to = n; }
__device__ void assign(Four<bf16> &to, const real4 &n) { to = {pack_bf16(n.v[0], n.v[1]), pack_bf16(n.v[2], n.v[3])}; }

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
