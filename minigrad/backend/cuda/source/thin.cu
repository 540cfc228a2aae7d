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
