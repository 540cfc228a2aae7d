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
    const x_real *x;
    const real *norm, *weight, *bias;
    const y_real *other;
    y_real *y;
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
    typedef Four<typename Part::Factor> Factors;
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
    // Of a, what it reads first. With bf16, 16 threads write at once: two rows that lie 4 apart, which are in all banks.
    const int line = thread / a_width, a_channel = thread % a_width * 4, turn = thread / 8 % 2 * 4;
    const int a_row = PRECISION == BF16 ? line / 8 * 8 + line % 2 * 4 + line % 8 / 2 : line;
    // Of b, the channel and the first of four k. Neighbouring threads read neighbours in weight: k if adjoint, else channels.
    // With bf16, rows that lie 8 apart begin in the same bank: so one thread has the second four of its k first.
    const int b_row = o.adjoint ? a_row : thread % BN;
    const int b_channel = o.adjoint ? a_channel : PRECISION == BF16 ? thread / BN * 8 + turn : thread / BN * 4;
    const int b_rows = o.adjoint ? threads / a_width : 0;  // apart
    const int b_channels = o.adjoint ? 0 : PRECISION == BF16 ? 4 - 2 * turn : threads / BN * 4;
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
        Four<x_real> a[a_count];
        real4 b[b_count];
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
                a[i] = {};
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
                *(Factors *)&shared.factors.a[a_row + i * (threads / a_width)][a_channel] = part.factors(a[i]);
#pragma unroll
            for (int i = 0; i < b_count; i++)
                *(Factors *)&shared.factors.b[b_row + i * b_rows][b_channel + i * b_channels] = part.factors(b[i]);
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
            Four<y_real> others[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {  // all before the first is needed
                const int out = n < o.F ? shared.origins[first + i * (threads / y_width)].out : -1;
                outs[i] = out;
                others[i] = o.other && out >= 0 ? read4(o.other + (size_t)out * o.F, n, o.F, o.y_quads) : Four<y_real>{};
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (outs[i] < 0) continue;
                real4 value = *(const real4 *)&shared.result[first + i * (threads / y_width)][n - n0];
                y_real *to = o.y + (size_t)outs[i] * o.F + n;
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    value.v[e] += bias.v[e];
                    if (o.active) value.v[e] = positive(value.v[e]);
                }
                Four<y_real> stored;
                assign(stored, value);
                if (o.y_quads) {
                    *(Four<y_real> *)to = stored;
                } else {
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (n + e < o.F) to[e] = stored.get(e);
                }
                if (!o.partials) continue;
                value = reals(stored);
                const real4 other = reals(others[i]);
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    // Less what a pixel is whose product is 0, so that equal ones cancel.
                    double shifted = (double)value.v[e] - (o.other ? 0 : positive(bias.v[e]));
                    total[0][e] += shifted;
                    total[1][e] += shifted * (o.other ? other.v[e] : shifted);
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
        const x_real *x, const real *norm, const real *weight, const real *bias, const y_real *other, y_real *y,      \
        double *partials, int N, int H, int W, int C, int OH, int OW, int F, int KH, int KW, int SH, int SW, int top, \
        int left, int adjoint, int active, int x_quads, int w_quads, int y_quads) {                                   \
        static_assert((BM / (TM)) * (BN / (TN)) == THREADS, "threads");                                               \
        correlate<BM, BN, BK, TM, TN>({x, norm, weight, bias, other, y, partials, N, H, W, C, OH, OW, F, KH, KW, SH,  \
                                       SW, top, left, adjoint, active, x_quads, w_quads, y_quads});                   \
    }
const int LARGE = sizeof(real) == 4 ? 128 : 64;  // pixels of a tile: with 128, double needs more than 48 KB of memory
const int DEEP = PRECISION == TF32 || PRECISION == BF16 ? 32 : 16;  // k of a step; else there are no registers for more
const int TALL = PRECISION ? 4 : LARGE / 16, WIDE = PRECISION ? 8 : 4;
CORRELATE(correlate_large, LARGE, 64, DEEP, TALL, WIDE, 256, sizeof(real) == 4 ? 2 : 1)
CORRELATE(correlate_narrow, LARGE, 32, DEEP, TALL, WIDE, 128, sizeof(real) == 4 ? 3 : 2)
CORRELATE(correlate_small, 64, 32, 32, 4, 4, 128, sizeof(real) == 4 ? 4 : 2)
