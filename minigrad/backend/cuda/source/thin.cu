// ---- convolutions of few taps times channels, or to few channels: most of a tile above would be empty ----

const int THIN = 16;    // most taps * channels of x
const int PIXELS = 64;  // at a time

// columns[k, i] = a[first + i, k] of the convolution of x; 0 beyond the last pixel. For all 256 threads of a block: each
// reads its part, and stores it when the columns before are no longer needed.
const int HELD = THIN * PIXELS / 256;

struct Columns {
    const x_real *x;
    const real *norm;
    int H, W, C, K, SH, SW, top, left;
    Pixels pixels;
    Divisor channels, cols;

    __device__ void read(real (&held)[HELD], int first, int last) const {
        const int m = first + threadIdx.x % PIXELS;
        const Place p = pixels.place(m);
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int k = threadIdx.x / PIXELS + i * (256 / PIXELS);
            const int tap = channels.quotient(k), c = k - tap * C, tap_row = cols.quotient(tap);
            const unsigned row = p.row * SH + tap_row - top, col = p.col * SW + tap - tap_row * cols.d - left;
            held[i] = 0;
            if (k >= K || m >= last || row >= H || col >= W) continue;
            held[i] = real(x[((p.image * H + (int)row) * W + (int)col) * C + c]);
            if (norm) held[i] = (held[i] - norm[c]) * norm[C + c] + norm[2 * C + c];
        }
    }
    __device__ void store(const real (&held)[HELD], real columns[THIN][PIXELS]) const {
#pragma unroll
        for (int i = 0; i < HELD; i++) columns[threadIdx.x / PIXELS + i * (256 / PIXELS)][threadIdx.x % PIXELS] = held[i];
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
extern "C" __global__ void __launch_bounds__(256, sizeof(real) == 4 ? 3 : 2) correlate_thin_input(
    const x_real *x, const real *norm, const real *weight, const real *bias, const y_real *other, y_real *y, double *partials,
    int N, int H, int W, int C, int OH, int OW, int F, int KH, int KW, int SH, int SW, int top, int left, int active) {
    __shared__ __align__(16) real columns[THIN][PIXELS];
    const int ty = threadIdx.x / 32, f = blockIdx.y * 32 + threadIdx.x % 32, K = KH * KW * C, M = N * OH * OW;
    const Columns all = {x, norm, H, W, C, K, SH, SW, top, left, Pixels(OH, OW), Divisor(C), Divisor(KW)};
    real w[THIN];
#pragma unroll
    for (int k = 0; k < THIN; k++) w[k] = k < K && f < F ? weight[k * F + f] : 0;
    const real b = bias && f < F ? bias[f] : 0, shift = partials && !other ? positive(b) : 0;  // as in correlate
    double total[2] = {};
    real held[HELD];
    all.read(held, blockIdx.x * PIXELS, M);
    for (int first = blockIdx.x * PIXELS; first < M; first += gridDim.x * PIXELS) {
        __syncthreads();
        all.store(held, columns);
        real others[8];
        for (int i = 0; i < 8; i++) {  // all before the first is needed
            const int m = first + ty * 8 + i;
            others[i] = other && m < M && f < F ? real(other[(size_t)m * F + f]) : 0;
        }
        __syncthreads();
        all.read(held, first + gridDim.x * PIXELS, M);  // while these are multiplied
        real acc[8] = {};
#pragma unroll
        for (int k = 0; k < THIN; k++)
            for (int i = 0; k < K && i < 8; i++) acc[i] += columns[k][ty * 8 + i] * w[k];
        for (int i = 0; i < 8; i++) {
            int m = first + ty * 8 + i;
            if (m >= M || f >= F) break;
            const y_real value(active ? positive(acc[i] + b) : acc[i] + b);
            y[(size_t)m * F + f] = value;
            if (!partials) continue;
            double shifted = (double)real(value) - shift;
            total[0] += shifted;
            total[1] += shifted * (other ? others[i] : shifted);
        }
    }
    if (partials) write_partials(total, partials, F);
}

// The gradient of that convolution's weight, as in weight_gradient. A thread has one channel of g, all k, and 8 of every 64
// pixels.
extern "C" __global__ void __launch_bounds__(256, sizeof(real) == 4 ? 3 : 2) weight_gradient_thin_input(
    const x_real *x, const real *x_norm, const y_real *g, const real *g_norm, real *shares, int N, int H, int W, int C, int OH,
    int OW, int F, int KH, int KW, int SH, int SW, int top, int left, int pixels_a_share) {
    __shared__ __align__(16) real columns[THIN][PIXELS];
    __shared__ real sums[8][THIN][32];
    const int lane = threadIdx.x % 32, ty = threadIdx.x / 32, f = blockIdx.y * 32 + lane, K = KH * KW * C;
    const int begin = blockIdx.z * pixels_a_share, M = N * OH * OW;
    const int last = begin + pixels_a_share < M ? begin + pixels_a_share : M;
    const Columns all = {x, x_norm, H, W, C, K, SH, SW, top, left, Pixels(OH, OW), Divisor(C), Divisor(KW)};
    real acc[THIN] = {}, mean = 0, scale = 1, beta = 0;
    if (g_norm && f < F) mean = g_norm[f], scale = g_norm[F + f], beta = g_norm[2 * F + f];
    real held[HELD];
    all.read(held, begin, last);
    for (int first = begin; first < last; first += PIXELS) {
        real b[8];
        for (int i = 0; i < 8; i++) {
            int m = first + ty * 8 + i;
            b[i] = m < last && f < F ? real(g[(size_t)m * F + f]) : 0;
        }
        __syncthreads();
        all.store(held, columns);
        __syncthreads();
        all.read(held, first + PIXELS, last);  // while these are multiplied
        if (g_norm)
            for (int i = 0; i < 8; i++) b[i] = (b[i] - mean) * scale + beta;
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

// The convolution, or its adjoint, to few channels F: from C <= 4 LANES channels, a multiple of 4, with at most 3 x 3 taps a
// pixel, where neighbours in a row of y read neighbours in a row of x. LANES threads compute up to RUN neighbours, each from
// four channels, whose weights it keeps: with the norm's scale in them, and what the rest of the norm adds at a tap that lies
// inside. They go through the columns of x that meet their pixels, and each column adds to three of these. blockIdx.z is the
// phase.
const int LANES = 16, WINDOW = 3, RUN = 16;

extern "C" __global__ void __launch_bounds__(256, sizeof(real) == 4 ? 2 : 1) correlate_thin_output(
    const x_real *__restrict__ x, const real *norm, const real *weight, const real *bias, y_real *__restrict__ y, int N, int H,
    int W, int C, int OH, int OW, int F, int KH, int KW, int SH, int SW, int top, int left, int adjoint, int active) {
    const int lane = threadIdx.x % LANES, c = 4 * lane;
    const Axis rows = axis_of(adjoint, blockIdx.z / SW, OH, KH, SH, top);
    const Axis cols = axis_of(adjoint, blockIdx.z % SW, OW, KW, SW, left);
    const int runs = (cols.pixels + RUN - 1) / RUN, length = runs ? (cols.pixels + runs - 1) / runs : 0;  // of a row
    const Pixels places(rows.pixels, runs);
    const int total = N * rows.pixels * runs;
    // So many taps lie above and left of tap 0.
    const int above = rows.sign < 0 ? rows.taps - 1 : 0, left_of = cols.sign < 0 ? cols.taps - 1 : 0;
    for (int f = 0; f < F; f++) {
        real w[WINDOW][WINDOW][4] = {}, constant[WINDOW][WINDOW] = {};  // from the top and from the left
#pragma unroll
        for (int i = 0; i < WINDOW; i++)
#pragma unroll
            for (int j = 0; j < WINDOW; j++) {
                if (i >= rows.taps || j >= cols.taps || c >= C) continue;
                const int t = rows.sign < 0 ? above - i : i, u = cols.sign < 0 ? left_of - j : j;
                const real *from = weight + ((rows.tap + t * rows.apart) * KW + cols.tap + u * cols.apart) * C * F;
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    w[i][j][e] = from[adjoint ? f * C + c + e : (c + e) * F + f];
                    if (!norm) continue;
                    constant[i][j] += w[i][j][e] * (norm[2 * C + c + e] - norm[c + e] * norm[C + c + e]);
                    w[i][j][e] *= norm[C + c + e];
                }
            }
        for (int start = blockIdx.x * (256 / LANES); start < total; start += gridDim.x * (256 / LANES)) {
            const int run = start + threadIdx.x / LANES;
            const Place p = places.place(run);
            const int first = p.col * length, last = first + length < cols.pixels ? first + length : cols.pixels;
            const int row = rows.in + p.row * rows.stride - above, col = cols.in + first - left_of;
            const x_real *const place = x + ((long long)(p.image * H + row) * W + col) * C + c;
            bool inside[WINDOW];
            real added[WINDOW] = {};  // by a column that lies inside
#pragma unroll
            for (int i = 0; i < WINDOW; i++) {
                inside[i] = run < total && c < C && i < rows.taps && (unsigned)(row + i) < H;
                for (int j = 0; j < WINDOW && inside[i]; j++) added[j] += constant[i][j];
            }
            Four<x_real> next[WINDOW] = {};
            auto read = [&](int j) {
#pragma unroll
                for (int i = 0; i < WINDOW; i++) {
                    next[i] = {};
                    if (inside[i] && (unsigned)(col + j) < W) next[i] = *(const Four<x_real> *)(place + (i * W + j) * C);
                }
            };
            read(0);
            real sums[WINDOW] = {};  // of pixel first + j - 2, which column j completes, and of the two after it
            for (int j = 0; j < length + WINDOW - 1; j++) {
                real4 column[WINDOW];
                for (int i = 0; i < WINDOW; i++) column[i] = reals(next[i]);
                read(j + 1);  // while this one is multiplied
                const bool here = (unsigned)(col + j) < W;
#pragma unroll
                for (int u = 0; u < WINDOW; u++) {
                    if (WINDOW - 1 - u >= cols.taps) continue;  // no tap, and 0 times infinity would be NaN
                    real part[2] = {here ? added[WINDOW - 1 - u] : 0, 0};
#pragma unroll
                    for (int i = 0; i < WINDOW; i++)
#pragma unroll
                        for (int e = 0; e < 4; e++) part[e % 2] += column[i].v[e] * w[i][WINDOW - 1 - u][e];
                    sums[u] += part[0] + part[1];
                }
                real sum = sums[0];
                sums[0] = sums[1];
                sums[1] = sums[2];
                sums[2] = 0;
                if (j < WINDOW - 1) continue;  // a pixel before the first
#pragma unroll
                for (int apart = LANES / 2; apart; apart /= 2) sum += __shfl_xor_sync(0xffffffff, sum, apart);
                const int pixel = first + j - (WINDOW - 1);
                if (run < total && lane == 0 && pixel < last) {
                    const int line = p.image * OH + rows.out + p.row * rows.step;
                    const real value = sum + (bias ? bias[f] : 0);
                    y[(line * OW + cols.out + pixel * cols.step) * F + f] = y_real(active ? positive(value) : value);
                }
            }
        }
    }
}
