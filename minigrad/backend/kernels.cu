// The CUDA kernels that cuda.py launches. REAL is float or double: the file is compiled once for each. With float and
// TF32=1 the tensor cores take the products of correlate_large and weight_gradient, from factors rounded to TF32.
//
// Arrays are contiguous and images NHWC, with the sizes that ops/conv.py names: a convolution maps (N, H, W, C) to
// (N, OH, OW, F) with weight (KH, KW, C, F).
//
// Sums over pixels are taken in double, without atomics: each block writes its own row of `partials` (blocks, 2, C), and
// `finish_sums` or `finish_moments` adds the rows in their order. The same step twice therefore gives the same bits.

typedef REAL real;
struct alignas(16) real4 { real v[4]; };

__device__ real positive(real x) { return x > 0 ? x : x != x ? x : 0; }  // max(x, 0), where NaN stays

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
#endif

// A thread's part of the sum over k of A[k, m] * B[k, n]: TM of the m by TN of the n, with COLUMNS threads along n. By
// itself it takes neighbouring numbers. With the tensor cores a warp takes 8 TM by 4 TN of them, 16 by 8 in each mma: its
// lane 4 g + t has g, g + 8, ... of the m, and 2 t and 2 t + 1 of every 8 of the n.
template <int TM, int TN, int COLUMNS, bool TENSOR>
struct Part {
    // Padding of the rows of A and B: with 8 the 4 by 8 numbers that a warp reads at once for mma lie in 32 banks.
    static const int A_PAD = TENSOR ? 8 : 4, B_PAD = TENSOR ? 8 : 0;
    int y, x;  // the thread's place along m and n

    __device__ Part(int thread) {
        int warp = thread / 32, lane = thread % 32;
        y = TENSOR ? warp / (COLUMNS / 4) * 8 + lane / 4 : thread / COLUMNS;
        x = TENSOR ? warp % (COLUMNS / 4) * 4 + lane % 4 : thread % COLUMNS;
    }
    __device__ int row(int i) const { return TENSOR ? y / 8 * 8 * TM + i * 8 + y % 8 : y * TM + i; }
    __device__ int column(int j) const { return TENSOR ? x / 4 * 4 * TN + j / 2 * 8 + x % 4 * 2 + j % 2 : x * TN + j; }

    // A number as it is stored in A or B.
    __device__ static real factor(real value) {
        if constexpr (TENSOR) return tf32(value);
        else return value;
    }

    template <int K, int A_WIDTH, int B_WIDTH>
    __device__ void add(const real (&A)[K][A_WIDTH], const real (&B)[K][B_WIDTH], real (&sums)[TM][TN]) const {
        if constexpr (TENSOR) {
            const int g = y % 8, t = x % 4;
#pragma unroll
            for (int k = 0; k < K; k += 8) {
                real b[TN / 2][2];
#pragma unroll
                for (int j = 0; j < TN; j++) b[j / 2][j % 2] = B[k + j % 2 * 4 + t][x / 4 * 4 * TN + j / 2 * 8 + g];
#pragma unroll
                for (int i = 0; i < TM; i += 2) {
                    real a[4];
#pragma unroll
                    for (int e = 0; e < 4; e++) a[e] = A[k + e / 2 * 4 + t][row(i + e % 2)];
#pragma unroll
                    for (int j = 0; j < TN; j += 2) mma(&sums[i][j], &sums[i + 1][j], a, b[j / 2]);
                }
            }
        } else {
#pragma unroll
            for (int k = 0; k < K; k++)
#pragma unroll
                for (int i = 0; i < TM; i++)
#pragma unroll
                    for (int j = 0; j < TN; j++) sums[i][j] += A[k][row(i)] * B[k][column(j)];
        }
    }
};

// ---- convolution and its adjoint: an implicit matrix product ----
//
// Both are y[m, n] = sum over k of A[m, k] * B[k, n], where m is a pixel of the result, n a channel of it, and k runs over
// the kernel taps that meet the pixel and the channels of x. A is never written down: its numbers are read from x.
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
    int x_quads, w_quads;  // whether four channels of x, and four neighbours of weight, may be read at once
};

// v = (v - mean) * scale + beta of channels c ... c + 3 with norm (3, C).
__device__ void normalise_quad(real4 &v, const real *norm, int c, int C) {
    real4 mean = *(const real4 *)&norm[c], scale = *(const real4 *)&norm[C + c], beta = *(const real4 *)&norm[2 * C + c];
#pragma unroll
    for (int e = 0; e < 4; e++) v.v[e] = (v.v[e] - mean.v[e]) * scale.v[e] + beta.v[e];
}

// A block of (BM / TM) * (BN / TN) threads computes BM pixels by BN channels, a thread TM by TN of them. It goes through
// the taps, and through BK channels of x at a time: all of a step is of one tap, so that nothing is divided. The next step
// of A and B is read from memory while the one in shared memory is multiplied.
template <int BM, int BN, int BK, int TM, int TN, bool TENSOR>
__device__ void correlate(const Correlation &o) {
    typedef Part<TM, TN, BN / TN, TENSOR> Part;
    const int threads = (BM / TM) * (BN / TN);
    const int quads = BM * BK / 4 / threads;  // of A, that a thread reads; all at the same channels
    static_assert(quads * threads * 4 == BM * BK && BN * BK == 4 * threads && threads % (BK / 4) == 0, "tile");
    __shared__ __align__(16) real As[2][BK][BM + Part::A_PAD];
    __shared__ __align__(16) real Bs[2][BK][BN + Part::B_PAD];
    typedef double Sums[2][BN];
    Sums *sums = (Sums *)As;  // (BM / TM, 2, BN), when the products are done
    static_assert(BM / TM * sizeof(Sums) <= sizeof(As), "sums");

    const int thread = threadIdx.x;
    const Part part(thread);
    const Axis rows = axis_of(o.adjoint, blockIdx.z / o.SW, o.OH, o.KH, o.SH, o.top);
    const Axis cols = axis_of(o.adjoint, blockIdx.z % o.SW, o.OW, o.KW, o.SW, o.left);
    const int M = o.N * rows.pixels * cols.pixels, steps = rows.taps * cols.taps * ((o.C + BK - 1) / BK);
    const int n0 = blockIdx.y * BN;
    const int a_channel = thread % (BK / 4) * 4;  // of a step, where this thread reads A
    // Where it reads B: the channels b_channel ... b_channel + 3 of x for channel b_column of y if adjoint; or the channel
    // b_channel for b_column ... b_column + 3. These are neighbours in weight.
    const int b_channel = o.adjoint ? a_channel : thread / (BN / 4);
    const int b_column = o.adjoint ? thread / (BK / 4) : thread % (BN / 4) * 4;

    double total[2][TN] = {};
    for (int tile = blockIdx.x; tile * BM < M; tile += gridDim.x) {
        int image[quads], h[quads], w[quads];  // where tap 0 of this thread's pixels lies; image -1: no pixel
#pragma unroll
        for (int i = 0; i < quads; i++) {
            int m = tile * BM + (thread + i * threads) / (BK / 4);
            int q = m % cols.pixels, p = m / cols.pixels % rows.pixels;
            image[i] = m < M ? m / cols.pixels / rows.pixels : -1;
            h[i] = rows.in + p * rows.stride;
            w[i] = cols.in + q * cols.stride;
        }
        real acc[TM][TN] = {};
        real4 a[quads], b;
        int t = 0, u = 0, c0 = 0;  // tap and first channel of the step that is read next

        auto read = [&]() {
            const int c = c0 + a_channel;
#pragma unroll
            for (int i = 0; i < quads; i++) {
                int row = h[i] + t * rows.sign, col = w[i] + u * cols.sign;
                bool inside = image[i] >= 0 && row >= 0 && row < o.H && col >= 0 && col < o.W;
                const real *from = &o.x[((size_t)(image[i] * o.H + row) * o.W + col) * o.C + c];
                a[i] = real4{};
                if (o.x_quads && inside && c < o.C) {
                    a[i] = *(const real4 *)from;
                    if (o.norm) normalise_quad(a[i], o.norm, c, o.C);
                } else {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        if (!inside || c + e >= o.C) continue;
                        real value = from[e];
                        if (o.norm) value = (value - o.norm[c + e]) * o.norm[o.C + c + e] + o.norm[2 * o.C + c + e];
                        a[i].v[e] = value;
                    }
                }
            }
            const int k = c0 + b_channel, n = n0 + b_column;
            const int tap = (rows.tap + t * rows.apart) * o.KW + cols.tap + u * cols.apart;
            const real *from = &o.weight[(size_t)tap * o.C * o.F + (o.adjoint ? n * o.C + k : k * o.F + n)];
            b = real4{};
            if (o.w_quads) {
                if (k < o.C && n < o.F) b = *(const real4 *)from;
            } else {
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (k + (o.adjoint ? e : 0) < o.C && n + (o.adjoint ? 0 : e) < o.F) b.v[e] = from[e];
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
        // The row of As and Bs that holds a channel. For the tensor cores neighbours lie apart, so that a warp, which stores
        // every fourth of 8 pixels at once, writes to 32 banks of As.
        auto place = [](int k) { return TENSOR ? k % 4 * (BK / 4) + k / 4 : k; };
        auto store = [&](int buffer) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
#pragma unroll
                for (int i = 0; i < quads; i++)
                    As[buffer][place(a_channel + e)][(thread + i * threads) / (BK / 4)] = part.factor(a[i].v[e]);
                b.v[e] = part.factor(b.v[e]);
                if (o.adjoint) Bs[buffer][place(b_channel + e)][b_column] = b.v[e];
            }
            if (!o.adjoint) *(real4 *)&Bs[buffer][place(b_channel)][b_column] = b;
        };

        if (steps > 0) {
            read();
            store(0);
        }
        __syncthreads();
        for (int step = 1; step <= steps; step++) {
            if (step < steps) read();
            part.add(As[(step + 1) % 2], Bs[(step + 1) % 2], acc);
            if (step < steps) store(step % 2);
            __syncthreads();
        }

        for (int i = 0; i < TM; i++) {
            int m = tile * BM + part.row(i);
            if (m >= M) break;
            int q = m % cols.pixels, p = m / cols.pixels % rows.pixels, image = m / cols.pixels / rows.pixels;
            size_t pixel = (size_t)(image * o.OH + rows.out + p * rows.step) * o.OW + cols.out + q * cols.step;
            for (int j = 0; j < TN; j++) {
                int n = n0 + part.column(j);
                if (n >= o.F) break;
                real value = acc[i][j] + (o.bias ? o.bias[n] : 0);
                if (o.active) value = positive(value);
                o.y[pixel * o.F + n] = value;
                if (!o.partials) continue;
                // Less what a pixel is whose product is 0, so that equal ones cancel.
                double shifted = (double)value - (o.other ? 0 : positive(o.bias[n]));
                total[0][j] += shifted;
                total[1][j] += shifted * (o.other ? o.other[pixel * o.F + n] : shifted);
            }
        }
    }
    if (!o.partials) return;
    for (int j = 0; j < TN; j++)
        for (int s = 0; s < 2; s++) sums[part.y][s][part.column(j)] = total[s][j];
    __syncthreads();
    size_t block = (size_t)blockIdx.z * gridDim.x + blockIdx.x;
    for (int i = thread; i < 2 * BN; i += threads) {
        int s = i / BN, n = i % BN;
        double sum = 0;
        for (int row = 0; row < BM / TM; row++) sum += sums[row][s][n];
        if (n0 + n < o.F) o.partials[(block * 2 + s) * o.F + n0 + n] = sum;
    }
}

// RESIDENT: blocks on a multiprocessor, what the registers allow.
#define CORRELATE(NAME, BM, BN, BK, TM, TN, TENSOR, RESIDENT)                                                         \
    extern "C" __global__ void __launch_bounds__(256, RESIDENT) NAME(                                                 \
        const real *x, const real *norm, const real *weight, const real *bias, const real *other, real *y,            \
        double *partials, int N, int H, int W, int C, int OH, int OW, int F, int KH, int KW, int SH, int SW, int top, \
        int left, int adjoint, int active, int x_quads, int w_quads) {                                                \
        static_assert((BM / (TM)) * (BN / (TN)) == 256, "threads");                                                   \
        correlate<BM, BN, BK, TM, TN, TENSOR>({x, norm, weight, bias, other, y, partials, N, H, W, C, OH, OW, F, KH,  \
                                               KW, SH, SW, top, left, adjoint, active, x_quads, w_quads});            \
    }
const int LARGE = sizeof(real) == 4 ? 128 : 64;  // so that both fit 48 KB of shared memory
CORRELATE(correlate_large, LARGE, 64, 16, LARGE / 16, 4, TF32, sizeof(real) == 4 && !TF32 ? 2 : 1)
CORRELATE(correlate_small, 32, 32, 32, 2, 2, false, 2)

// ---- the gradient of a convolution's weight ----
//
// gweight[k, f] = sum over pixels m of A[m, k] * g[m, f]. blockIdx.z takes a share of the pixels and writes partial sums
// (shares, KH*KW*C, F), which `add_shares` adds.

const int GM = 16, GK = 64, GF = 64;  // pixels at a time; a block computes GK by GF, a thread 4 by 4 of them

extern "C" __global__ void __launch_bounds__(256, sizeof(real) == 4 ? 2 : 1) weight_gradient(
    const real *x, const real *x_norm, const real *g, const real *g_norm, real *shares, int N, int H, int W, int C, int OH,
    int OW, int F, int KH, int KW, int SH, int SW, int top, int left, int x_quads, int g_quads, int pixels_a_share) {
    typedef Part<4, 4, GF / 4, TF32> Part;
    __shared__ __align__(16) real As[GM][GK + Part::A_PAD];
    __shared__ __align__(16) real Gs[GM][GF + Part::B_PAD];
    const int thread = threadIdx.x, tx = thread % 16, ty = thread / 16;
    const Part part(thread);
    const int k0 = blockIdx.x * GK + tx * 4, f0 = blockIdx.y * GF + tx * 4, K = KH * KW * C;
    const int first = blockIdx.z * pixels_a_share, M = N * OH * OW;
    const int last = first + pixels_a_share < M ? first + pixels_a_share : M;

    // This thread reads columns k0 ... k0 + 3 of A and f0 ... f0 + 3 of g: which tap and channel of x, and their norms.
    int tap_row[4], tap_col[4], channel[4];
    real x_rows[3][4] = {}, g_rows[3][4] = {};
#pragma unroll
    for (int e = 0; e < 4; e++) {
        int k = k0 + e, f = f0 + e;
        channel[e] = k % C;
        tap_row[e] = k < K ? k / C / KW - top : -2 * H - KH;  // outside
        tap_col[e] = k / C % KW - left;
#pragma unroll
        for (int r = 0; r < 3; r++) {
            if (x_norm) x_rows[r][e] = x_norm[r * C + channel[e]];
            if (g_norm && f < F) g_rows[r][e] = g_norm[r * F + f];
        }
    }
    int m = first + ty, q = m % OW, p = m / OW % OH, image = m / OW / OH;  // the pixel that is read next
    real4 a, b;
    auto read = [&]() {
        a = b = real4{};
        if (m < last) {
            if (x_quads) {  // all four are of one tap
                int row = p * SH + tap_row[0], col = q * SW + tap_col[0];
                if (row >= 0 && row < H && col >= 0 && col < W) {
                    a = *(const real4 *)&x[((size_t)(image * H + row) * W + col) * C + channel[0]];
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (x_norm) a.v[e] = (a.v[e] - x_rows[0][e]) * x_rows[1][e] + x_rows[2][e];
                }
            } else {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int row = p * SH + tap_row[e], col = q * SW + tap_col[e];
                    if (row < 0 || row >= H || col < 0 || col >= W) continue;
                    real value = x[((size_t)(image * H + row) * W + col) * C + channel[e]];
                    a.v[e] = x_norm ? (value - x_rows[0][e]) * x_rows[1][e] + x_rows[2][e] : value;
                }
            }
            if (g_quads && f0 < F) b = *(const real4 *)&g[(size_t)m * F + f0];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if (!g_quads && f0 + e < F) b.v[e] = g[(size_t)m * F + f0 + e];
                if (g_norm && f0 + e < F) b.v[e] = (b.v[e] - g_rows[0][e]) * g_rows[1][e] + g_rows[2][e];
            }
        }
        m += GM;
        for (q += GM; q >= OW; q -= OW)
            if (++p == OH) {
                p = 0;
                image++;
            }
    };

    real acc[4][4] = {};
    read();
    for (int m0 = first; m0 < last; m0 += GM) {
        for (int e = 0; e < 4; e++) {
            a.v[e] = part.factor(a.v[e]);
            b.v[e] = part.factor(b.v[e]);
        }
        *(real4 *)&As[ty][tx * 4] = a;
        *(real4 *)&Gs[ty][tx * 4] = b;
        __syncthreads();
        read();  // while these are multiplied
        part.add(As, Gs, acc);
        __syncthreads();
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            int k = blockIdx.x * GK + part.row(i), f = blockIdx.y * GF + part.column(j);
            if (k < K && f < F) shares[((size_t)blockIdx.z * K + k) * F + f] = acc[i][j];
        }
}

// ---- convolutions of few taps times channels, or to few channels: most of a tile above would be empty ----

const int THIN = 16;    // most taps * channels of x
const int PIXELS = 64;  // at a time

// columns[k, i] = A[first + i, k] of the convolution of x; 0 beyond the last pixel. For all threads of a block.
__device__ void read_columns(
    real columns[THIN][PIXELS], const real *x, const real *norm, int first, int last, int H, int W, int C, int OH, int OW,
    int KH, int KW, int SH, int SW, int top, int left) {
    for (int i = threadIdx.x; i < KH * KW * C * PIXELS; i += blockDim.x) {
        int m = first + i % PIXELS, k = i / PIXELS, c = k % C;
        int row = m / OW % OH * SH + k / C / KW - top, col = m % OW * SW + k / C % KW - left;
        real value = 0;
        if (m < last && row >= 0 && row < H && col >= 0 && col < W) {
            value = x[((size_t)(m / OW / OH * H + row) * W + col) * C + c];
            if (norm) value = (value - norm[c]) * norm[C + c] + norm[2 * C + c];
        }
        columns[k][i % PIXELS] = value;
    }
}

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
extern "C" __global__ void __launch_bounds__(256) correlate_thin_input(
    const real *x, const real *norm, const real *weight, const real *bias, const real *other, real *y, double *partials,
    int N, int H, int W, int C, int OH, int OW, int F, int KH, int KW, int SH, int SW, int top, int left, int active) {
    __shared__ __align__(16) real columns[THIN][PIXELS];
    const int ty = threadIdx.x / 32, f = blockIdx.y * 32 + threadIdx.x % 32, K = KH * KW * C, M = N * OH * OW;
    real w[THIN];
#pragma unroll
    for (int k = 0; k < THIN; k++) w[k] = k < K && f < F ? weight[k * F + f] : 0;
    const real b = bias && f < F ? bias[f] : 0, shift = partials && !other ? positive(b) : 0;  // as in correlate
    double total[2] = {};
    for (int first = blockIdx.x * PIXELS; first < M; first += gridDim.x * PIXELS) {
        __syncthreads();
        read_columns(columns, x, norm, first, M, H, W, C, OH, OW, KH, KW, SH, SW, top, left);
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
            double shifted = (double)value - shift;
            total[0] += shifted;
            total[1] += shifted * (other ? other[(size_t)m * F + f] : shifted);
        }
    }
    if (partials) write_partials(total, partials, F);
}

// The gradient of that convolution's weight, as in weight_gradient. A thread has one channel of g, all k, and 8 of every 64
// pixels.
extern "C" __global__ void __launch_bounds__(256) weight_gradient_thin_input(
    const real *x, const real *x_norm, const real *g, const real *g_norm, real *shares, int N, int H, int W, int C, int OH,
    int OW, int F, int KH, int KW, int SH, int SW, int top, int left, int pixels_a_share) {
    __shared__ __align__(16) real columns[THIN][PIXELS];
    __shared__ real sums[8][THIN][32];
    const int lane = threadIdx.x % 32, ty = threadIdx.x / 32, f = blockIdx.y * 32 + lane, K = KH * KW * C;
    const int begin = blockIdx.z * pixels_a_share, M = N * OH * OW;
    const int last = begin + pixels_a_share < M ? begin + pixels_a_share : M;
    real acc[THIN] = {};
    for (int first = begin; first < last; first += PIXELS) {
        __syncthreads();
        read_columns(columns, x, x_norm, first, last, H, W, C, OH, OW, KH, KW, SH, SW, top, left);
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

extern "C" __global__ void __launch_bounds__(256) correlate_thin_output(
    const real *__restrict__ x, const real *norm, const real *weight, const real *bias, real *__restrict__ y, int N, int H,
    int W, int C, int OH, int OW, int F, int KH, int KW, int SH, int SW, int top, int left, int adjoint, int active) {
    const int lane = threadIdx.x % LANES, c = 4 * lane, M_PER = 256 / LANES * RUN;
    const Axis rows = axis_of(adjoint, blockIdx.z / SW, OH, KH, SH, top);
    const Axis cols = axis_of(adjoint, blockIdx.z % SW, OW, KW, SW, left);
    const int M = N * rows.pixels * cols.pixels, taps = rows.taps * cols.taps;
    for (int f = 0; f < F; f++) {
        real w[TAPS][4] = {}, constant[TAPS] = {};
        int row_of[TAPS] = {}, col_of[TAPS] = {};
#pragma unroll
        for (int tap = 0; tap < TAPS; tap++) {
            if (tap >= taps || c >= C) continue;
            int t = tap / cols.taps, u = tap % cols.taps;
            row_of[tap] = t * rows.sign;
            col_of[tap] = u * cols.sign;
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
            int m = start + threadIdx.x / LANES * RUN, q = m % cols.pixels, p = m / cols.pixels % rows.pixels;
            int image = m / cols.pixels / rows.pixels;
            for (int i = 0; i < RUN; i++, m++) {
                real sum = 0;
                if (m < M && c < C) {
                    const int h = rows.in + p * rows.stride, v = cols.in + q * cols.stride;
#pragma unroll
                    for (int tap = 0; tap < TAPS; tap++) {
                        int row = h + row_of[tap], col = v + col_of[tap];
                        if (tap >= taps || row < 0 || row >= H || col < 0 || col >= W) continue;
                        real4 a = *(const real4 *)&x[((size_t)(image * H + row) * W + col) * C + c];
                        sum += constant[tap];
#pragma unroll
                        for (int e = 0; e < 4; e++) sum += a.v[e] * w[tap][e];
                    }
                }
#pragma unroll
                for (int apart = LANES / 2; apart; apart /= 2) sum += __shfl_xor_sync(0xffffffff, sum, apart);
                if (m < M && lane == 0) {
                    size_t pixel = (size_t)(image * OH + rows.out + p * rows.step) * OW + cols.out + q * cols.step;
                    real value = sum + (bias ? bias[f] : 0);
                    y[pixel * F + f] = active ? positive(value) : value;
                }
                if (++q == cols.pixels) {
                    q = 0;
                    if (++p == rows.pixels) {
                        p = 0;
                        image++;
                    }
                }
            }
        }
    }
}

// total[i] = sum over s of shares[s, i].
__device__ void add_share(const real *shares, real *total, int count, int size) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    double sum = 0;
    for (int s = 0; s < count; s++) sum += shares[(size_t)s * size + i];
    total[i] = sum;
}

extern "C" __global__ void add_shares(const real *shares, real *total, int count, int size) {
    add_share(shares, total, count, size);
}

// ---- products of small matrices, for dense layers ----
//
// shares[z, m, n] = sum over the z-th share of k of a[m * am + k * ak] * b[k * bk + n * bn]; `add_shares` adds them.

extern "C" __global__ void __launch_bounds__(256) matrix_product(
    const real *a, const real *b, real *shares, int M, int K, int N, int am, int ak, int bk, int bn, int k_a_share) {
    __shared__ real As[16][33];
    __shared__ real Bs[16][33];
    const int thread = threadIdx.x, tx = thread % 16, ty = thread / 16;
    const int m0 = blockIdx.x * 32, n0 = blockIdx.y * 32, first = blockIdx.z * k_a_share;
    const int last = first + k_a_share < K ? first + k_a_share : K;
    real acc[2][2] = {};
    for (int k0 = first; k0 < last; k0 += 16) {
        for (int i = thread; i < 16 * 32; i += 256) {
            int ka = ak == 1 ? i % 16 : i / 32, m = ak == 1 ? i / 16 : i % 32;  // consecutive threads, consecutive numbers
            int kb = bk == 1 ? i % 16 : i / 32, n = bk == 1 ? i / 16 : i % 32;
            bool in_a = k0 + ka < last && m0 + m < M, in_b = k0 + kb < last && n0 + n < N;
            As[ka][m] = in_a ? a[(size_t)(m0 + m) * am + (size_t)(k0 + ka) * ak] : 0;
            Bs[kb][n] = in_b ? b[(size_t)(k0 + kb) * bk + (size_t)(n0 + n) * bn] : 0;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 16; k++)
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 2; j++) acc[i][j] += As[k][ty + 16 * i] * Bs[k][tx + 16 * j];
        __syncthreads();
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            int m = m0 + ty + 16 * i, n = n0 + tx + 16 * j;
            if (m < M && n < N) shares[((size_t)blockIdx.z * M + m) * N + n] = acc[i][j];
        }
}

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
// every 16th of the partial sums, and the first row adds those.
__device__ void add_partials(const double *partials, int blocks, int C, int c, double *total) {
    __shared__ double sums[16][2][32];
    const int lane = threadIdx.x % 32, ty = threadIdx.x / 32;
    for (int s = 0; s < 2; s++) {
        double sum = 0;
        if (c < C)
            for (int block = ty; block < blocks; block += 16) sum += partials[((size_t)block * 2 + s) * C + c];
        sums[ty][s][lane] = sum;
    }
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
    const int block = blockIdx.x - (size + 511) / 512;
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
