// The CUDA kernels that kernels.py launches. REAL is float or double: the file is compiled once for each. With float and
// TF32=1 the tensor cores take the products of `correlate` and `weight_gradient`, from factors rounded to TF32.
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

// ---- the product of two tiles in shared memory ----

#ifdef __CUDACC__  // not where the tests run this file on a CPU
// x rounded to TF32: 10 bits after the point, ties away from zero.
__device__ float tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
}

// c (16, 8) += a (16, 8) b (8, 8) by the 32 lanes of a warp: PTX ISA, matrix fragments for mma.m16n8k8. Lane 4 g + t
// brings a[g, t], a[g + 8, t], a[g, t + 4], a[g + 8, t + 4] and b[t, g], b[t + 4, g]; its part of c is c[g, 2 t] and
// c[g, 2 t + 1] (upper), c[g + 8, 2 t] and c[g + 8, 2 t + 1] (lower).
__device__ void mma(float *upper, float *lower, const float *a, const float *b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
          "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// Four matrices (8, 4) from shared memory: lane 8 i + r brings the place of row r of matrix i, 16 aligned bytes, and lane
// 4 g + t gets the number [g, t] of each. (PTX ISA, ldmatrix, which takes a float for two numbers of 16 bits.)
__device__ void load_matrices(float *numbers, const float *row) {
    unsigned n[4];
    asm volatile(
        "{\n .reg .u64 place;\n .reg .u32 shared;\n cvta.to.shared.u64 place, %4;\n cvt.u32.u64 shared, place;\n"
        " ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [shared];\n}"
        : "=r"(n[0]), "=r"(n[1]), "=r"(n[2]), "=r"(n[3]) : "l"(row) : "memory");
#pragma unroll
    for (int i = 0; i < 4; i++) numbers[i] = __uint_as_float(n[i]);
}
#endif

// A thread's part of c[m, n] = sum over k of a[m, k] * b[n, k], for a (BM, BK) and b (BN, BK): TM of the m by TN of the n.
// By itself it takes every ROWS-th m and every COLUMNS-th n. With the tensor cores a warp takes 8 TM by 4 TN of them, 16
// by 8 in each mma: its lane 4 g + t has g, g + 8, ... of the m, and 2 t and 2 t + 1 of every 8 of the n.
template <int BM, int BN, int BK, int TM, int TN>
struct Part {
    static const int ROWS = BM / TM, COLUMNS = BN / TN, THREADS = ROWS * COLUMNS;
    static const int WIDTH = BK + 4;  // of a row in memory: so rows that are read together lie in other banks
    typedef real A[BM][WIDTH];
    typedef real B[BN][WIDTH];
    typedef real C[BM][BN + 4];
    int y, x;  // the thread's place along m and n

    __device__ Part(int thread) {
        int warp = thread / 32, lane = thread % 32;
        y = TF32 ? warp / (COLUMNS / 4) * 8 + lane / 4 : thread / COLUMNS;
        x = TF32 ? warp % (COLUMNS / 4) * 4 + lane % 4 : thread % COLUMNS;
    }
    __device__ int row(int i) const { return TF32 ? y / 8 * 8 * TM + i * 8 + y % 8 : y + i * ROWS; }
    __device__ int column(int j) const { return TF32 ? x / 4 * 4 * TN + j / 2 * 8 + x % 4 * 2 + j % 2 : x + j * COLUMNS; }

    // Four numbers as they are stored in a or b.
    __device__ static real4 factors(real4 values) {
#if TF32
        for (int e = 0; e < 4; e++) values.v[e] = tf32(values.v[e]);
#endif
        return values;
    }

    __device__ void add(const A &a, const B &b, real (&sums)[TM][TN]) const {
#if TF32
        const int lane = y % 8 * 4 + x % 4, matrix = lane / 8, line = lane % 8;
        const real *rows = &a[y / 8 * 8 * TM + matrix % 2 * 8 + line][matrix / 2 * 4];
        const real *columns = &b[x / 4 * 4 * TN + matrix / 2 * 8 + line][matrix % 2 * 4];
#pragma unroll
        for (int k = 0; k < BK; k += 8) {
            real of_b[TN / 4][4], of_a[4];
#pragma unroll
            for (int j = 0; j < TN / 4; j++) load_matrices(of_b[j], columns + j * 16 * WIDTH + k);
#pragma unroll
            for (int i = 0; i < TM; i += 2) {
                load_matrices(of_a, rows + i * 8 * WIDTH + k);
#pragma unroll
                for (int j = 0; j < TN; j += 2) mma(&sums[i][j], &sums[i + 1][j], of_a, &of_b[j / 4][j % 4]);
            }
        }
#else
#pragma unroll 1  // or there are not enough registers
        for (int k = 0; k < BK; k += 4) {
            real4 columns[TN];
#pragma unroll
            for (int j = 0; j < TN; j++) columns[j] = *(const real4 *)&b[column(j)][k];
#pragma unroll
            for (int i = 0; i < TM; i++) {
                const real4 line = *(const real4 *)&a[row(i)][k];
#pragma unroll
                for (int e = 0; e < 4; e++)
#pragma unroll
                    for (int j = 0; j < TN; j++) sums[i][j] += line.v[e] * columns[j].v[e];
            }
        }
#endif
    }
};

// Channels c ... c + 3 of a norm (3, C): value = (value - mean) * scale + beta. 0 beyond the last channel.
struct Norm4 {
    real4 mean, scale, beta;

    __device__ void read(const real *norm, int c, int C, bool quads) {
        if (quads) {
            mean = *(const real4 *)&norm[c], scale = *(const real4 *)&norm[C + c], beta = *(const real4 *)&norm[2 * C + c];
            return;
        }
        mean = scale = beta = real4{};
        for (int e = 0; e < 4 && c + e < C; e++)
            mean.v[e] = norm[c + e], scale.v[e] = norm[C + c + e], beta.v[e] = norm[2 * C + c + e];
    }
    __device__ void apply(real4 &value) const {
#pragma unroll
        for (int e = 0; e < 4; e++) value.v[e] = (value.v[e] - mean.v[e]) * scale.v[e] + beta.v[e];
    }
};

// Numbers n ... n + 3 of a row of N numbers; 0 beyond the last.
__device__ real4 read4(const real *row, int n, int N, bool quads) {
    real4 values = {};
    if (quads) {
        if (n < N) values = *(const real4 *)&row[n];
    } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (n + e < N) values.v[e] = row[n + e];
    }
    return values;
}

// ---- convolution and its adjoint: an implicit matrix product ----
//
// Both are y[m, n] = sum over k of a[m, k] * b[n, k], where m is a pixel of the result, n a channel of it, and k runs over
// the kernel taps that meet the pixel and the channels of x. a is never written down: its numbers are read from x.
//
// convolution: pixel p meets all kernel rows i, and with each the row p * SH + i - top of x.
// adjoint: pixels of one phase, h = phase + p * SH, meet the same kernel rows i = first, first + SH, ..., and with each the
// row (h + top - i) / SH of x, a whole number. blockIdx.z is the phase of the rows times SW plus that of the columns.

struct Axis {  // of one phase
    int pixels;      // p = 0 ... pixels - 1
    int out, step;   // pixel p is y's row out + p * step
    int taps;        // t = 0 ... taps - 1
    int tap, apart;  // tap t is kernel row tap + t * apart
    int in, stride, sign;  // with which pixel p reads x's row in + p * stride + t * sign
};

__device__ Axis axis_of(int adjoint, int phase, int size, int K, int S, int before) {
    if (!adjoint) return {size, 0, 1, K, 0, 1, -before, S, 1};
    int first = (phase + before) % S;
    int taps = first < K ? (K - first + S - 1) / S : 0;
    int pixels = phase < size ? (size - phase + S - 1) / S : 0;
    return {pixels, phase, S, taps, first, S, (phase + before - first) / S, 1, -1};
}

struct Correlation {
    const real *x, *norm, *weight, *bias, *other;
    real *y;
    double *partials;
    int N, H, W, C;     // x
    int OH, OW, F;      // y
    int KH, KW, SH, SW, top, left;
    int adjoint, active;
    int x_quads, w_quads, y_quads;  // whether four neighbours of x, weight, and y and other may be read at once
};

struct alignas(16) Origin {  // of a pixel of the result
    int row, col, place;  // where tap 0 lies in x, and its place there without the channel
    int out;              // its place in y without the channel; -1: there is no such pixel
};
const int OUTSIDE = -(1 << 30);  // a row that is none

// A block computes BM pixels by BN channels. It goes through the taps, and through BK channels of x at a time: all of a step
// is of one tap, so that nothing is divided. What the next step needs is read from memory while this one is multiplied; it
// is normalised when it has come. The result goes through shared memory, so that four channels of it are written at once.
template <int BM, int BN, int BK, int TM, int TN>
__device__ void correlate(const Correlation &o) {
    typedef Part<BM, BN, BK, TM, TN> Part;
    const int threads = Part::THREADS, a_width = BK / 4, y_width = BN / 4;  // of a row, in fours
    const int a_count = BM * a_width / threads, b_count = BN * a_width / threads;  // that a thread reads
    static_assert(a_count * threads == BM * a_width && b_count * threads == BN * a_width, "tile");
    static_assert(BM * y_width % (4 * threads) == 0, "each thread writes four rows at once");
    __shared__ __align__(16) struct {
        union {
            struct { typename Part::A a; typename Part::B b; } factors;
            typename Part::C result;
        };
        double totals[threads / 32][2][BN];  // of a warp
        Origin origins[BM];
    } shared;

    const int thread = threadIdx.x, n0 = blockIdx.y * BN;
    const Part part(thread);
    const Axis rows = axis_of(o.adjoint, blockIdx.z / o.SW, o.OH, o.KH, o.SH, o.top);
    const Axis cols = axis_of(o.adjoint, blockIdx.z % o.SW, o.OW, o.KW, o.SW, o.left);
    const Pixels pixels(rows.pixels, cols.pixels);
    const int M = o.N * rows.pixels * cols.pixels, steps = rows.taps * cols.taps * ((o.C + BK - 1) / BK);
    const int a_row = thread / a_width, a_channel = thread % a_width * 4;  // of a, what it reads first
    // Of b, the channel and the first of four k. Neighbouring threads read neighbours in weight: k if adjoint, else channels.
    const int b_row = o.adjoint ? thread / a_width : thread % BN, b_channel = o.adjoint ? a_channel : thread / BN * 4;
    const int b_rows = o.adjoint ? threads / a_width : 0, b_channels = o.adjoint ? 0 : threads / BN * 4;  // apart
    const int n = n0 + thread % y_width * 4;  // of the result, that it writes
    double (&totals)[2][BN] = shared.totals[thread / 32];
    if (thread % 32 < y_width)
        for (int e = 0; e < 4; e++) totals[0][n - n0 + e] = totals[1][n - n0 + e] = 0;
    __syncthreads();  // for a phase without pixels, which has no other before the totals are read

    for (int tile = blockIdx.x; tile * BM < M; tile += gridDim.x) {
        for (int i = thread; i < BM; i += threads) {
            const int m = tile * BM + i;
            const Place p = pixels.place(m);
            const int row = rows.in + p.row * rows.stride, col = cols.in + p.col * cols.stride;
            const int out = (p.image * o.OH + rows.out + p.row * rows.step) * o.OW + cols.out + p.col * cols.step;
            shared.origins[i] = {m < M ? row : OUTSIDE, col, (p.image * o.H + row) * o.W + col, m < M ? out : -1};
        }
        __syncthreads();
        real acc[TM][TN] = {};
        real4 a[a_count], b[b_count];
        int inside = 0;            // bit i: whether a[i] is a pixel of x
        int held = 0;              // its first channel
        int t = 0, u = 0, c0 = 0;  // tap and first channel of the step that is read next

        auto read = [&]() {
            const int c = c0 + a_channel, down = t * rows.sign, right = u * cols.sign;
            inside = 0;
            held = c;
#pragma unroll
            for (int i = 0; i < a_count; i++) {
                const Origin origin = shared.origins[a_row + i * (threads / a_width)];
                const unsigned row = origin.row + down, col = origin.col + right;
                a[i] = real4{};
                if (row >= o.H || col >= o.W) continue;
                inside |= 1 << i;
                a[i] = read4(o.x + (origin.place + down * o.W + right) * o.C, c, o.C, o.x_quads);
            }
            const real *tap = o.weight + (size_t)((rows.tap + t * rows.apart) * o.KW + cols.tap + u * cols.apart) * o.C * o.F;
#pragma unroll
            for (int i = 0; i < b_count; i++) {
                const int k = c0 + b_channel + i * b_channels, f = n0 + b_row + i * b_rows;
                b[i] = real4{};
                if (f >= o.F) continue;
                if (o.adjoint) {
                    b[i] = read4(tap + f * o.C, k, o.C, o.w_quads);
                } else {
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (k + e < o.C) b[i].v[e] = tap[(k + e) * o.F + f];
                }
            }
            c0 += BK;
            if (c0 >= o.C) {
                c0 = 0;
                u++;
            }
            if (u == cols.taps) {
                u = 0;
                t++;
            }
        };
        auto store = [&]() {
            if (o.norm && held < o.C) {
                Norm4 norm;
                norm.read(o.norm, held, o.C, o.x_quads);
#pragma unroll
                for (int i = 0; i < a_count; i++)
                    if (inside >> i & 1) norm.apply(a[i]);
            }
#pragma unroll
            for (int i = 0; i < a_count; i++)
                *(real4 *)&shared.factors.a[a_row + i * (threads / a_width)][a_channel] = part.factors(a[i]);
#pragma unroll
            for (int i = 0; i < b_count; i++)
                *(real4 *)&shared.factors.b[b_row + i * b_rows][b_channel + i * b_channels] = part.factors(b[i]);
        };

        if (steps > 0) read();
        for (int step = 1; step <= steps; step++) {
            store();
            __syncthreads();
            if (step < steps) read();
            part.add(shared.factors.a, shared.factors.b, acc);
            __syncthreads();
        }

#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) shared.result[part.row(i)][part.column(j)] = acc[i][j];
        __syncthreads();
        const real4 bias = o.bias ? read4(o.bias, n, o.F, false) : real4{};
        double total[2][4] = {};
        for (int first = thread / y_width; first < BM; first += 4 * (threads / y_width)) {
            int outs[4];
            real4 others[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {  // all before the first is needed
                const int out = n < o.F ? shared.origins[first + i * (threads / y_width)].out : -1;
                outs[i] = out;
                others[i] = o.other && out >= 0 ? read4(o.other + (size_t)out * o.F, n, o.F, o.y_quads) : real4{};
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (outs[i] < 0) continue;
                real4 value = *(const real4 *)&shared.result[first + i * (threads / y_width)][n - n0];
                real *to = o.y + (size_t)outs[i] * o.F + n;
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    value.v[e] += bias.v[e];
                    if (o.active) value.v[e] = positive(value.v[e]);
                }
                if (o.y_quads) {
                    *(real4 *)to = value;
                } else {
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (n + e < o.F) to[e] = value.v[e];
                }
                if (!o.partials) continue;
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    // Less what a pixel is whose product is 0, so that equal ones cancel.
                    double shifted = (double)value.v[e] - (o.other ? 0 : positive(bias.v[e]));
                    total[0][e] += shifted;
                    total[1][e] += shifted * (o.other ? others[i].v[e] : shifted);
                }
            }
        }
        for (int e = 0; e < 4 && o.partials; e++)
            for (int s = 0; s < 2; s++) {
                // the lanes that write the same channels
                for (int apart = y_width; apart < 32; apart *= 2) total[s][e] += __shfl_xor_sync(0xffffffff, total[s][e], apart);
                if (thread % 32 < y_width) totals[s][n - n0 + e] += total[s][e];
            }
        __syncthreads();
    }
    const size_t block = (size_t)blockIdx.z * gridDim.x + blockIdx.x;
    for (int i = thread; i < 2 * BN && o.partials; i += threads) {
        int s = i / BN, f = i % BN;
        double sum = 0;
        for (int warp = 0; warp < threads / 32; warp++) sum += shared.totals[warp][s][f];
        if (n0 + f < o.F) o.partials[(block * 2 + s) * o.F + n0 + f] = sum;
    }
}

// RESIDENT: blocks on a multiprocessor, what the registers allow.
#define CORRELATE(NAME, BM, BN, BK, TM, TN, THREADS, RESIDENT)                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) NAME(                                             \
        const real *x, const real *norm, const real *weight, const real *bias, const real *other, real *y,            \
        double *partials, int N, int H, int W, int C, int OH, int OW, int F, int KH, int KW, int SH, int SW, int top, \
        int left, int adjoint, int active, int x_quads, int w_quads, int y_quads) {                                   \
        static_assert((BM / (TM)) * (BN / (TN)) == THREADS, "threads");                                               \
        correlate<BM, BN, BK, TM, TN>({x, norm, weight, bias, other, y, partials, N, H, W, C, OH, OW, F, KH, KW, SH,  \
                                       SW, top, left, adjoint, active, x_quads, w_quads, y_quads});                   \
    }
const int LARGE = sizeof(real) == 4 ? 128 : 64;  // pixels of a tile: with 128, double needs more than 48 KB of memory
const int DEEP = TF32 ? 32 : 16;                 // k of a step; without the tensor cores there are no registers for more
const int TALL = TF32 ? 4 : LARGE / 16, WIDE = TF32 ? 8 : 4;
CORRELATE(correlate_large, LARGE, 64, DEEP, TALL, WIDE, 256, sizeof(real) == 4 ? 2 : 1)
CORRELATE(correlate_small, 64, 32, 32, 4, 4, 128, sizeof(real) == 4 ? 4 : 2)

// ---- the gradient of a convolution's weight ----
//
// gweight[k, f] = sum over pixels m of a[k, m] * g[f, m]. blockIdx.z takes a share of the pixels and writes partial sums
// (shares, KH*KW*C, F), which `add_shares` adds. A block computes GK by GF of them, from GM pixels at a time. A thread reads
// four k, or four f, or both, of four pixels.

const int GM = DEEP, GK = LARGE, GF = 64, LINES = 256 / (GM / 4) * 4;  // that the threads can read

extern "C" __global__ void __launch_bounds__(256, sizeof(real) == 4 ? 2 : 1) weight_gradient(
    const real *x, const real *x_norm, const real *g, const real *g_norm, real *shares, int N, int H, int W, int C, int OH,
    int OW, int F, int KH, int KW, int SH, int SW, int top, int left, int x_quads, int g_quads, int pixels_a_share) {
    typedef Part<GK, GF, GM, TALL, WIDE> Part;
    static_assert(Part::THREADS == 256 && GK <= LINES, "tile");
    __shared__ __align__(16) Part::A as;
    __shared__ __align__(16) Part::B gs;
    const int thread = threadIdx.x, K = KH * KW * C;
    const Part part(thread);
    const Pixels pixels(OH, OW);
    const int first = blockIdx.z * pixels_a_share, M = N * OH * OW;
    const int last = first + pixels_a_share < M ? first + pixels_a_share : M;
    const int pixel = thread % (GM / 4) * 4, line = thread / (GM / 4) * 4;  // of a tile, the first of those it reads
    const int g_line = line - (LINES - GF), k = blockIdx.x * GK + line, f = blockIdx.y * GF + g_line;
    const bool reads_x = line < GK && k < K, reads_g = g_line >= 0 && f < F;
    const int tap_row = k / C / KW - top, tap_col = k / C % KW - left, channel = k % C;  // of the four k if x_quads

    // Of four pixels. Where there are threads enough for all lines, none reads both a and b, and they share their registers.
    real4 a[4], others[4];
    real4 *const b = LINES < GK + GF ? others : a;
    int inside = 0;  // bit i: whether a[i] is to be normalised
    int m = first + pixel;
    auto read = [&]() {
        Place p = pixels.place(m);
        inside = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            a[i] = b[i] = real4{};
            if (m + i < last && reads_x && x_quads) {  // all four are of one tap
                const unsigned row = p.row * SH + tap_row, col = p.col * SW + tap_col;
                if (row < H && col < W) {
                    inside |= 1 << i;
                    a[i] = *(const real4 *)&x[((p.image * H + (int)row) * W + (int)col) * C + channel];
                }
            } else if (m + i < last && reads_x) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int c = (k + e) % C, tap = (k + e) / C;
                    const unsigned row = p.row * SH + tap / KW - top, col = p.col * SW + tap % KW - left;
                    if (k + e >= K || row >= H || col >= W) continue;
                    const real value = x[((p.image * H + (int)row) * W + (int)col) * C + c];
                    a[i].v[e] = x_norm ? (value - x_norm[c]) * x_norm[C + c] + x_norm[2 * C + c] : value;
                }
            }
            if (m + i < last && reads_g) b[i] = read4(g + (size_t)(m + i) * F, f, F, g_quads);
            if (++p.col == OW) {
                p.col = 0;
                if (++p.row == OH) {
                    p.row = 0;
                    p.image++;
                }
            }
        }
    };
    auto normalise_read = [&]() {
        Norm4 norm;
        if (x_norm && inside) {
            norm.read(x_norm, channel, C, true);
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (inside >> i & 1) norm.apply(a[i]);
        }
        if (g_norm && reads_g) {
            norm.read(g_norm, f, F, g_quads);
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (m + i < last) norm.apply(b[i]);
        }
    };

    real acc[TALL][WIDE] = {};
    read();
    for (int m0 = first; m0 < last; m0 += GM) {
        normalise_read();
        m += GM;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            if (line < GK) *(real4 *)&as[line + e][pixel] = part.factors({a[0].v[e], a[1].v[e], a[2].v[e], a[3].v[e]});
            if (g_line >= 0) *(real4 *)&gs[g_line + e][pixel] = part.factors({b[0].v[e], b[1].v[e], b[2].v[e], b[3].v[e]});
        }
        __syncthreads();
        read();  // while these are multiplied
        part.add(as, gs, acc);
        __syncthreads();
    }
    for (int i = 0; i < TALL; i++)
        for (int j = 0; j < WIDE; j++) {
            int k = blockIdx.x * GK + part.row(i), f = blockIdx.y * GF + part.column(j);
            if (k < K && f < F) shares[((size_t)blockIdx.z * K + k) * F + f] = acc[i][j];
        }
}

// ---- convolutions of few taps times channels, or to few channels: most of a tile above would be empty ----

const int THIN = 16;    // most taps * channels of x
const int PIXELS = 64;  // at a time

// columns[k, i] = a[first + i, k] of the convolution of x; 0 beyond the last pixel. For all threads of a block.
struct Columns {
    const real *x, *norm;
    int H, W, C, K, SH, SW, top, left;
    Pixels pixels;
    Divisor channels, cols;

    __device__ void read(real columns[THIN][PIXELS], int first, int last) const {
        const int i = threadIdx.x % PIXELS, m = first + i;
        const Place p = pixels.place(m);
        for (int k = threadIdx.x / PIXELS; k < K; k += blockDim.x / PIXELS) {
            const int tap = channels.quotient(k), c = k - tap * C, tap_row = cols.quotient(tap);
            const unsigned row = p.row * SH + tap_row - top, col = p.col * SW + tap - tap_row * cols.d - left;
            real value = 0;
            if (m < last && row < H && col < W) {
                value = x[((p.image * H + (int)row) * W + (int)col) * C + c];
                if (norm) value = (value - norm[c]) * norm[C + c] + norm[2 * C + c];
            }
            columns[k][i] = value;
        }
    }
};

// The sums of a block of 32 channels by 8 rows of threads become its row of partials (blocks, 2, C).
__device__ void write_partials(const double *total, double *partials, int C) {
    __shared__ double sums[8][2][32];
    const int lane = threadIdx.x % 32, ty = threadIdx.x / 32, c = blockIdx.y * 32 + lane;
    sums[ty][0][lane] = total[0];
    sums[ty][1][lane] = total[1];
    __syncthreads();
    if (ty < 2 && c < C) {
        double sum = 0;
        for (int i = 0; i < 8; i++) sum += sums[i][ty][lane];
        partials[((size_t)blockIdx.x * 2 + ty) * C + c] = sum;
    }
}

// The convolution where KH * KW * C <= THIN. A block computes 64 pixels by 32 channels, a thread 8 pixels of one.
extern "C" __global__ void __launch_bounds__(256, sizeof(real) == 4 ? 4 : 2) correlate_thin_input(
    const real *x, const real *norm, const real *weight, const real *bias, const real *other, real *y, double *partials,
    int N, int H, int W, int C, int OH, int OW, int F, int KH, int KW, int SH, int SW, int top, int left, int active) {
    __shared__ __align__(16) real columns[THIN][PIXELS];
    const int ty = threadIdx.x / 32, f = blockIdx.y * 32 + threadIdx.x % 32, K = KH * KW * C, M = N * OH * OW;
    const Columns all = {x, norm, H, W, C, K, SH, SW, top, left, Pixels(OH, OW), Divisor(C), Divisor(KW)};
    real w[THIN];
#pragma unroll
    for (int k = 0; k < THIN; k++) w[k] = k < K && f < F ? weight[k * F + f] : 0;
    const real b = bias && f < F ? bias[f] : 0, shift = partials && !other ? positive(b) : 0;  // as in correlate
    double total[2] = {};
    for (int first = blockIdx.x * PIXELS; first < M; first += gridDim.x * PIXELS) {
        __syncthreads();
        all.read(columns, first, M);
        real others[8];
        for (int i = 0; i < 8; i++) {  // all before the first is needed
            const int m = first + ty * 8 + i;
            others[i] = other && m < M && f < F ? other[(size_t)m * F + f] : 0;
        }
        __syncthreads();
        real acc[8] = {};
#pragma unroll
        for (int k = 0; k < THIN; k++)
            for (int i = 0; k < K && i < 8; i++) acc[i] += columns[k][ty * 8 + i] * w[k];
        for (int i = 0; i < 8; i++) {
            int m = first + ty * 8 + i;
            if (m >= M || f >= F) break;
            real value = active ? positive(acc[i] + b) : acc[i] + b;
            y[(size_t)m * F + f] = value;
            if (!partials) continue;
            double shifted = (double)value - shift;
            total[0] += shifted;
            total[1] += shifted * (other ? others[i] : shifted);
        }
    }
    if (partials) write_partials(total, partials, F);
}

// The gradient of that convolution's weight, as in weight_gradient. A thread has one channel of g, all k, and 8 of every 64
// pixels.
extern "C" __global__ void __launch_bounds__(256, sizeof(real) == 4 ? 5 : 3) weight_gradient_thin_input(
    const real *x, const real *x_norm, const real *g, const real *g_norm, real *shares, int N, int H, int W, int C, int OH,
    int OW, int F, int KH, int KW, int SH, int SW, int top, int left, int pixels_a_share) {
    __shared__ __align__(16) real columns[THIN][PIXELS];
    __shared__ real sums[8][THIN][32];
    const int lane = threadIdx.x % 32, ty = threadIdx.x / 32, f = blockIdx.y * 32 + lane, K = KH * KW * C;
    const int begin = blockIdx.z * pixels_a_share, M = N * OH * OW;
    const int last = begin + pixels_a_share < M ? begin + pixels_a_share : M;
    const Columns all = {x, x_norm, H, W, C, K, SH, SW, top, left, Pixels(OH, OW), Divisor(C), Divisor(KW)};
    real acc[THIN] = {};
    for (int first = begin; first < last; first += PIXELS) {
        __syncthreads();
        all.read(columns, first, last);
        __syncthreads();
        real b[8];
        for (int i = 0; i < 8; i++) {
            int m = first + ty * 8 + i;
            b[i] = m < last && f < F ? g[(size_t)m * F + f] : 0;
            if (g_norm && f < F) b[i] = (b[i] - g_norm[f]) * g_norm[F + f] + g_norm[2 * F + f];
        }
#pragma unroll
        for (int k = 0; k < THIN; k++)
            for (int i = 0; k < K && i < 8; i++) acc[k] += columns[k][ty * 8 + i] * b[i];
    }
    for (int k = 0; k < THIN; k++) sums[ty][k][lane] = acc[k];
    __syncthreads();
    for (int k = ty; k < K && f < F; k += 8) {
        real sum = 0;
        for (int i = 0; i < 8; i++) sum += sums[i][k][lane];
        shares[((size_t)blockIdx.z * K + k) * F + f] = sum;
    }
}

// The convolution, or its adjoint, to few channels F: from C <= 4 LANES channels, a multiple of 4, with at most TAPS taps a
// pixel. LANES threads compute a pixel, each from four channels, whose weights it keeps: with the norm's scale in them, and
// what the rest of the norm adds at a tap that lies inside. They go through RUN pixels in a row. blockIdx.z is the phase.
const int LANES = 16, TAPS = 9, RUN = 8;

extern "C" __global__ void __launch_bounds__(256, sizeof(real) == 4 ? 2 : 1) correlate_thin_output(
    const real *__restrict__ x, const real *norm, const real *weight, const real *bias, real *__restrict__ y, int N, int H,
    int W, int C, int OH, int OW, int F, int KH, int KW, int SH, int SW, int top, int left, int adjoint, int active) {
    const int lane = threadIdx.x % LANES, c = 4 * lane, M_PER = 256 / LANES * RUN;
    const Axis rows = axis_of(adjoint, blockIdx.z / SW, OH, KH, SH, top);
    const Axis cols = axis_of(adjoint, blockIdx.z % SW, OW, KW, SW, left);
    const Pixels pixels(rows.pixels, cols.pixels);
    const int M = N * rows.pixels * cols.pixels, taps = rows.taps * cols.taps;
    const int reciprocal = taps ? 255 / cols.taps + 1 : 0;  // tap * reciprocal / 256 is tap / cols.taps for tap < 9
    // So many taps lie above and left of tap 0.
    const int above = rows.sign < 0 ? rows.taps - 1 : 0, left_of = cols.sign < 0 ? cols.taps - 1 : 0;
    for (int f = 0; f < F; f++) {
        real w[TAPS][4] = {}, constant[TAPS] = {};
        unsigned away[TAPS] = {};  // from the place in x of the top left tap
#pragma unroll
        for (int tap = 0; tap < TAPS; tap++) {
            if (tap >= taps || c >= C) continue;
            int t = tap / cols.taps, u = tap % cols.taps;
            away[tap] = ((t * rows.sign + above) * W + u * cols.sign + left_of) * C;
            const real *from = weight + ((rows.tap + t * rows.apart) * KW + cols.tap + u * cols.apart) * C * F;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                w[tap][e] = from[adjoint ? f * C + c + e : (c + e) * F + f];
                if (!norm) continue;
                constant[tap] += w[tap][e] * (norm[2 * C + c + e] - norm[c + e] * norm[C + c + e]);
                w[tap][e] *= norm[C + c + e];
            }
        }
        for (int start = blockIdx.x * M_PER; start < M; start += gridDim.x * M_PER) {
            int m = start + threadIdx.x / LANES * RUN;
            Place p = pixels.place(m);
            for (int i = 0; i < RUN; i++, m++) {
                real sums[4] = {};
                if (m < M && c < C) {
                    const int h = rows.in + p.row * rows.stride, v = cols.in + p.col * cols.stride;
                    const int top_row = h - above, left_col = v - left_of;
                    const real *place = x + (long long)((p.image * H + top_row) * W + left_col) * C + c;
                    auto add = [&](int tap) {
                        const real4 a = *(const real4 *)(place + away[tap]);
#pragma unroll
                        for (int e = 0; e < 4; e++) sums[e] += a.v[e] * w[tap][e];
                        sums[0] += constant[tap];
                    };
                    // Nearly all pixels meet all taps, and those of a 3 x 3 kernel need no test for each.
                    if (taps == TAPS && top_row >= 0 && top_row + rows.taps <= H && left_col >= 0 &&
                        left_col + cols.taps <= W) {
#pragma unroll
                        for (int tap = 0; tap < TAPS; tap++) add(tap);
                    } else {
#pragma unroll
                        for (int tap = 0; tap < TAPS; tap++) {
                            const int t = tap * reciprocal >> 8;
                            const unsigned row = h + t * rows.sign, col = v + (tap - t * cols.taps) * cols.sign;
                            if (tap >= taps || row >= H || col >= W) continue;
                            add(tap);
                        }
                    }
                }
                real sum = sums[0] + sums[1] + (sums[2] + sums[3]);
#pragma unroll
                for (int apart = LANES / 2; apart; apart /= 2) sum += __shfl_xor_sync(0xffffffff, sum, apart);
                if (m < M && lane == 0) {
                    int row = p.image * OH + rows.out + p.row * rows.step;
                    real value = sum + (bias ? bias[f] : 0);
                    y[(row * OW + cols.out + p.col * cols.step) * F + f] = active ? positive(value) : value;
                }
                if (++p.col == cols.pixels) {
                    p.col = 0;
                    if (++p.row == rows.pixels) {
                        p.row = 0;
                        p.image++;
                    }
                }
            }
        }
    }
}

// total[i] = sum over s of shares[s, i]. A block of 512 threads has 64 numbers; each of its 8 rows adds every 8th share.
__device__ void add_share(const real *shares, real *total, int count, int size) {
    __shared__ double sums[8][64];
    const int lane = threadIdx.x % 64, ty = threadIdx.x / 64, i = blockIdx.x * 64 + lane;
    double sum = 0;
    if (i < size)
#pragma unroll 4
        for (int s = ty; s < count; s += 8) sum += shares[(size_t)s * size + i];
    sums[ty][lane] = sum;
    __syncthreads();
    if (ty || i >= size) return;
    for (int row = 1; row < 8; row++) sum += sums[row][lane];
    total[i] = sum;
}

extern "C" __global__ void __launch_bounds__(512) add_shares(const real *shares, real *total, int count, int size) {
    add_share(shares, total, count, size);
}

// ---- products of small matrices, for dense layers ----
//
// Number m, n of the z-th share is the sum over that share of k of a[m * am + k * ak] * b[k * bk + n * bn]. It goes to place
// m * ym + n * yn of shares[z], because kernels.py may swap a and b; `add_shares` adds the shares. 256 threads compute BM by BN
// numbers, each TM by TN of them.

template <int BM, int BN, int TM, int TN>
__device__ void product(
    const real *a, const real *b, real *shares, int M, int K, int N, int am, int ak, int bk, int bn, int ym, int yn,
    int k_a_share) {
    const int BK = 16, ROWS = BM / TM, COLUMNS = BN / TN;
    static_assert(ROWS * COLUMNS == 256, "threads");
    __shared__ real As[BK][BM + 1];
    __shared__ real Bs[BK][BN + 1];
    const int thread = threadIdx.x, tx = thread % COLUMNS, ty = thread / COLUMNS;
    const int m0 = blockIdx.x * BM, n0 = blockIdx.y * BN, first = blockIdx.z * k_a_share;
    const int last = first + k_a_share < K ? first + k_a_share : K;
    real acc[TM][TN] = {};
    for (int k0 = first; k0 < last; k0 += BK) {
        for (int i = thread; i < BK * BM; i += 256) {  // consecutive threads, consecutive numbers
            int k = ak == 1 ? i % BK : i / BM, m = ak == 1 ? i / BK : i % BM;
            As[k][m] = k0 + k < last && m0 + m < M ? a[(size_t)(m0 + m) * am + (size_t)(k0 + k) * ak] : 0;
        }
        for (int i = thread; i < BK * BN; i += 256) {
            int k = bk == 1 ? i % BK : i / BN, n = bk == 1 ? i / BK : i % BN;
            Bs[k][n] = k0 + k < last && n0 + n < N ? b[(size_t)(k0 + k) * bk + (size_t)(n0 + n) * bn] : 0;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < BK; k++)
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++) acc[i][j] += As[k][ty + ROWS * i] * Bs[k][tx + COLUMNS * j];
        __syncthreads();
    }
    for (int i = 0; i < TM; i++)
        for (int j = 0; j < TN; j++) {
            int m = m0 + ty + ROWS * i, n = n0 + tx + COLUMNS * j;
            if (m < M && n < N) shares[(size_t)blockIdx.z * M * N + (size_t)m * ym + (size_t)n * yn] = acc[i][j];
        }
}

#define PRODUCT(NAME, BM, BN, TM, TN)                                                                               \
    extern "C" __global__ void __launch_bounds__(256) NAME(                                                         \
        const real *a, const real *b, real *shares, int M, int K, int N, int am, int ak, int bk, int bn, int ym,    \
        int yn, int k_a_share) {                                                                                    \
        product<BM, BN, TM, TN>(a, b, shares, M, K, N, am, ak, bk, bn, ym, yn, k_a_share);                          \
    }
PRODUCT(matrix_product, 32, 32, 2, 2)
PRODUCT(matrix_product_thin, 256, 4, 4, 1)  // where N is small: most of a tile of the other would be empty

// ---- what goes over all rows (M, C) and sums over them: a block has 32 channels by 8 rows at a time ----
//
// channel(c) gives what is done at a place, row(place, sums), so that what belongs to the channel is read only once.
template <class Channel>
__device__ void over_rows(int M, int C, double *partials, Channel channel) {
    const int lane = threadIdx.x % 32, ty = threadIdx.x / 32, c = blockIdx.y * 32 + lane;
    double total[2] = {};
    if (c < C) {
        auto row = channel(c);
#pragma unroll 4
        for (int m = blockIdx.x * 8 + ty; m < M; m += gridDim.x * 8) row((size_t)m * C + c, total);
    }
    if (partials) write_partials(total, partials, C);
}

// The sums of x and of x * other; without other those of x (less shift, if there is one) and of its square.
extern "C" __global__ void __launch_bounds__(256) row_sums(
    const real *__restrict__ x, const real *__restrict__ other, const real *shift, double *partials, int M, int C) {
    over_rows(M, C, partials, [=](int c) {
        const double less = shift ? shift[c] : 0;
        return [=](size_t i, double *total) {
            double value = x[i] - less;
            total[0] += value;
            total[1] += value * (other ? other[i] : value);
        };
    });
}

// The sums of x themselves, where one block of threads is enough for all rows.
extern "C" __global__ void __launch_bounds__(256) few_row_sums(const real *x, real *sums, int M, int C) {
    __shared__ double rows[8][32];
    const int lane = threadIdx.x % 32, ty = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    double total = 0;
    for (int m = ty; m < M && c < C; m += 8) total += x[(size_t)m * C + c];
    rows[ty][lane] = total;
    __syncthreads();
    if (ty || c >= C) return;
    for (int i = 1; i < 8; i++) total += rows[i][lane];
    sums[c] = total;
}

// y = (x - mean) * scale + beta with norm (3, C).
extern "C" __global__ void __launch_bounds__(256) normalise(
    const real *__restrict__ x, const real *norm, real *__restrict__ y, int M, int C) {
    over_rows(M, C, nullptr, [=](int c) {
        const real mean = norm[c], scale = norm[C + c], beta = norm[2 * C + c];
        return [=](size_t i, double *) { y[i] = (x[i] - mean) * scale + beta; };
    });
}

// g = scale * (gy - offset - (y - mean) * slope) with through (4, C); if relu, 0 where y is not positive. And its sum.
extern "C" __global__ void __launch_bounds__(256) through_norm(
    const real *__restrict__ gy, const real *__restrict__ y, const real *through, real *__restrict__ g, double *partials,
    int M, int C, int relu) {
    over_rows(M, C, partials, [=](int c) {
        const real mean = through[c], scale = through[C + c], offset = through[2 * C + c], slope = through[3 * C + c];
        return [=](size_t i, double *total) {
            real value = scale * (gy[i] - offset - (y[i] - mean) * slope);
            if (relu && !(y[i] > 0)) value = 0;
            g[i] = value;
            total[0] += value;
        };
    });
}

// The two sums of channel c from partials (blocks, 2, C). A block of threads has 32 channels; each of its 16 rows adds
// every 16th of the partial sums, and then all rows add those.
__device__ void add_partials(const double *partials, int blocks, int C, int c, double *total) {
    __shared__ double sums[16][2][32];
    const int lane = threadIdx.x % 32, ty = threadIdx.x / 32;
    double both[2] = {};
    if (c < C)
#pragma unroll 8
        for (int block = ty; block < blocks; block += 16)
#pragma unroll
            for (int s = 0; s < 2; s++) both[s] += partials[((size_t)block * 2 + s) * C + c];
    sums[ty][0][lane] = both[0];
    sums[ty][1][lane] = both[1];
    __syncthreads();
    for (int s = 0; s < 2; s++) {
        total[s] = 0;
        for (int row = 0; row < 16; row++) total[s] += sums[row][s][lane];
    }
}

// sums (2, C); the second less mean times the first, if there is a mean.
extern "C" __global__ void __launch_bounds__(512) finish_sums(
    const double *partials, const real *mean, real *sums, int blocks, int C) {
    int c = blockIdx.x * 32 + threadIdx.x % 32;
    double total[2];
    add_partials(partials, blocks, C, c, total);
    if (c >= C || threadIdx.x >= 32) return;
    sums[c] = total[0];
    sums[C + c] = mean ? total[1] - mean[c] * total[0] : total[1];
}

__device__ void write_norm(real *norm, real gamma, real beta, real mean, real variance, real epsilon, int c, int C) {
    norm[c] = mean;
    norm[C + c] = gamma / sqrt(variance + epsilon);
    norm[2 * C + c] = beta;
}

// The gradients of weight and bias: the sum of shares (count, size) as in add_shares, and the first of the two sums of
// partials (blocks, 2, C), which the last blocks of threads have.
extern "C" __global__ void __launch_bounds__(512) finish_gradients(
    const real *shares, real *total, const double *partials, real *sums, int count, int size, int blocks, int C) {
    const int block = blockIdx.x - (size + 63) / 64;
    if (block < 0) {
        add_share(shares, total, count, size);
        return;
    }
    int c = block * 32 + threadIdx.x % 32;
    double both[2];
    add_partials(partials, blocks, C, c, both);
    if (c < C && threadIdx.x < 32) sums[c] = both[0];
}

// Mean and variance from the sums of values, less a shift (its ReLU, if so), and of their squares. If the mean lies 1,000
// deviations from the shift, the squares lose 1e6 * 2^-53 of the variance: nothing for a float, too much for a double.
// With gamma also norm (3, C): mean, scale = gamma / sqrt(variance + epsilon), beta.
extern "C" __global__ void __launch_bounds__(512) finish_moments(
    const double *partials, const real *shift, const real *gamma, const real *beta, real *mean, real *variance, real *norm,
    int relu, int blocks, int C, double count, double epsilon) {
    int c = blockIdx.x * 32 + threadIdx.x % 32;
    double total[2];
    add_partials(partials, blocks, C, c, total);
    if (c >= C || threadIdx.x >= 32) return;
    double m = total[0] / count, deviation = total[1] / count - m * m;
    mean[c] = (relu ? positive(shift[c]) : shift[c]) + m;
    variance[c] = positive(deviation);
    if (gamma) write_norm(norm, gamma[c], beta[c], mean[c], variance[c], epsilon, c, C);
}

extern "C" __global__ void norm_rows(
    const real *gamma, const real *beta, const real *mean, const real *variance, real *norm, int C, real epsilon) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < C) write_norm(norm, gamma[c], beta[c], mean[c], variance[c], epsilon, c, C);
}

// through (4, C): mean, scale, gbeta / count, ggamma / sqrt(variance + epsilon) / count; and ggamma, gbeta.
struct Through {
    const real *gamma, *mean, *variance;
    real *through, *ggamma, *gbeta;
    int C;
    real epsilon, count;
};

// first and second: the sums of gy and of gy * (x - mean).
__device__ void write_through(const Through &o, int c, real first, real second) {
    real inverse_deviation = 1 / sqrt(o.variance[c] + o.epsilon);
    o.gbeta[c] = first;
    o.ggamma[c] = second * inverse_deviation;
    o.through[c] = o.mean[c];
    o.through[o.C + c] = o.gamma[c] * inverse_deviation;
    o.through[2 * o.C + c] = first / o.count;
    o.through[3 * o.C + c] = o.ggamma[c] * inverse_deviation / o.count;
}

extern "C" __global__ void through_rows(
    const real *sums, const real *gamma, const real *mean, const real *variance, real *through, real *ggamma, real *gbeta,
    int C, real epsilon, real count) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < C) write_through({gamma, mean, variance, through, ggamma, gbeta, C, epsilon, count}, c, sums[c], sums[C + c]);
}

// The same from partials (blocks, 2, C): the sums of gy and of gy * x.
extern "C" __global__ void __launch_bounds__(512) finish_through(
    const double *partials, const real *gamma, const real *mean, const real *variance, real *through, real *ggamma,
    real *gbeta, int blocks, int C, real epsilon, real count) {
    int c = blockIdx.x * 32 + threadIdx.x % 32;
    double total[2];
    add_partials(partials, blocks, C, c, total);
    if (c >= C || threadIdx.x >= 32) return;
    Through o = {gamma, mean, variance, through, ggamma, gbeta, C, epsilon, count};
    write_through(o, c, total[0], total[1] - mean[c] * total[0]);
}

extern "C" __global__ void batch_norm_update(
    real *moving_mean, real *moving_variance, const real *mean, const real *variance, int C, real momentum, real rest) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    moving_mean[c] = momentum * moving_mean[c] + rest * mean[c];
    moving_variance[c] = momentum * moving_variance[c] + rest * variance[c];
}

// ---- images and gradients ----

// x = images / 255 of the images whose numbers are in rows; blockIdx.x is the image of x.
extern "C" __global__ void unit_range(const unsigned char *images, const long long *rows, real *x, int size) {
    int i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < size) x[(size_t)blockIdx.x * size + i] = (real)images[(size_t)rows[blockIdx.x] * size + i] / 255;
}

const int LISTED = 64;
struct Additions {  // end[i]: the first block of threads behind those of array i
    real *total[LISTED];
    const real *value[LISTED];
    int size[LISTED], end[LISTED];
};

// total += value of every array in the list.
extern "C" __global__ void add_all(const Additions list) {
    int array = 0;
    while (array < LISTED - 1 && (int)blockIdx.x >= list.end[array]) array++;
    int i = (blockIdx.x - (array ? list.end[array - 1] : 0)) * blockDim.x + threadIdx.x;
    if (i < list.size[array]) list.total[array][i] += list.value[array][i];
}

// ---- losses ----

extern "C" __global__ void sigmoid(const real *x, real *y, int size) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    real e = exp(-fabs(x[i]));  // no overflow
    y[i] = (x[i] >= 0 ? 1 : e) / (1 + e);
}

// partials[block] = sum of softplus(logit) - logit * target; `finish_sums` with C = 1 takes (blocks, 2, 1).
extern "C" __global__ void __launch_bounds__(256) bernoulli_nll(
    const real *logits, const real *targets, double *partials, int size) {
    __shared__ double sums[256];
    double total = 0;
    for (size_t i = (size_t)blockIdx.x * 256 + threadIdx.x; i < (size_t)size; i += (size_t)gridDim.x * 256) {
        real logit = logits[i];
        total += positive(logit) - logit * targets[i] + log1p(exp(-fabs(logit)));
    }
    sums[threadIdx.x] = total;
    for (int half = 128; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) {
        partials[2 * blockIdx.x] = sums[0];
        partials[2 * blockIdx.x + 1] = 0;
    }
}

// ---- the optimiser ----

// Algorithm 1 of the Adam paper; scalars: rate, 1 / (1 - beta_1^t), 1 / (1 - beta_2^t).
extern "C" __global__ void adam_step(
    real *parameters, real *mean, real *variance, const real *gradients, const real *scalars, int size, real beta_1,
    real rest_1, real beta_2, real rest_2, real epsilon, real weight_decay) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    real g = gradients[i];
    real m = mean[i] = beta_1 * mean[i] + rest_1 * g;
    real v = variance[i] = beta_2 * variance[i] + rest_2 * g * g;
    real update = m * scalars[1] / (sqrt(v * scalars[2]) + epsilon) + weight_decay * parameters[i];
    parameters[i] -= scalars[0] * update;
}
