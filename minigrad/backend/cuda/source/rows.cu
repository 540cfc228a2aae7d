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
    const x_real *__restrict__ x, const y_real *__restrict__ other, const real *shift, double *partials, int M, int C) {
    over_rows(M, C, partials, [=](int c) {
        const double less = shift ? shift[c] : 0;
        return [=](size_t i, double *total) {
            double value = real(x[i]) - less;
            total[0] += value;
            total[1] += value * (other ? real(other[i]) : value);
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
    const x_real *__restrict__ x, const real *norm, y_real *__restrict__ y, int M, int C) {
    over_rows(M, C, nullptr, [=](int c) {
        const real mean = norm[c], scale = norm[C + c], beta = norm[2 * C + c];
        return [=](size_t i, double *) { y[i] = y_real((real(x[i]) - mean) * scale + beta); };
    });
}

// g = scale * (gy - offset - (y - mean) * slope) with grad_rows (4, C); if relu, 0 where y is not positive. And its sum.
extern "C" __global__ void __launch_bounds__(256) norm_gradient(
    const x_real *__restrict__ gy, const y_real *__restrict__ y, const real *grad_rows, y_real *__restrict__ g,
    double *partials, int M, int C, int relu) {
    over_rows(M, C, partials, [=](int c) {
        const real mean = grad_rows[c], scale = grad_rows[C + c], offset = grad_rows[2 * C + c], slope = grad_rows[3 * C + c];
        return [=](size_t i, double *total) {
            const real here(y[i]);
            real value = scale * (real(gy[i]) - offset - (here - mean) * slope);
            if (relu && !(here > 0)) value = 0;
            const y_real stored(value);
            g[i] = stored;
            total[0] += real(stored);
        };
    });
}

// The two sums of channel c from partials (blocks, 2, C), for the threads with ty = 0. A block of threads has GROUP
// channels; each of its 64 rows adds every 64th of the partial sums, and then half of the rows add the other half's.
const int GROUP = 8;

__device__ void add_partials(const double *partials, int blocks, int C, int c, double *total) {
    const int ROWS = 512 / GROUP;
    __shared__ double sums[ROWS][2][GROUP];
    const int lane = threadIdx.x % GROUP, ty = threadIdx.x / GROUP;
    total[0] = total[1] = 0;
    if (c < C)
#pragma unroll 4
        for (int block = ty; block < blocks; block += ROWS)
#pragma unroll
            for (int s = 0; s < 2; s++) total[s] += partials[((size_t)block * 2 + s) * C + c];
    for (int half = ROWS / 2; half; half /= 2) {
        if (ty < 2 * half)
            for (int s = 0; s < 2; s++) sums[ty][s][lane] = total[s];
        __syncthreads();
        if (ty < half)
            for (int s = 0; s < 2; s++) total[s] += sums[ty + half][s][lane];
        __syncthreads();
    }
}

// sums (2, C), times a share: the part of one process in the sums of all.
extern "C" __global__ void __launch_bounds__(512) share_sums(
    const double *partials, double *sums, int blocks, int C, double share) {
    int c = blockIdx.x * GROUP + threadIdx.x % GROUP;
    double total[2];
    add_partials(partials, blocks, C, c, total);
    if (c >= C || threadIdx.x >= GROUP) return;
    for (int s = 0; s < 2; s++) sums[s * C + c] = total[s] * share;
}

// sums (2, C); the second less mean times the first, if there is a mean.
extern "C" __global__ void __launch_bounds__(512) finish_sums(
    const double *partials, const real *mean, real *sums, int blocks, int C) {
    int c = blockIdx.x * GROUP + threadIdx.x % GROUP;
    double total[2];
    add_partials(partials, blocks, C, c, total);
    if (c >= C || threadIdx.x >= GROUP) return;
    sums[c] = total[0];
    sums[C + c] = mean ? total[1] - mean[c] * total[0] : total[1];
}

__device__ void write_norm(real *norm, real gamma, real beta, real mean, real variance, real epsilon, int c, int C) {
    norm[c] = mean;
    norm[C + c] = gamma / sqrt(variance + epsilon);
    norm[2 * C + c] = beta;
}

// The gradients of weight and bias: the sum of shares (count, size) as in add_shares, and the first of the two sums of
// partials (blocks, 2, C), which the first blocks of threads have, because it takes them longer.
extern "C" __global__ void __launch_bounds__(512) finish_gradients(
    const real *shares, real *total, const double *partials, real *sums, int count, int size, int blocks, int C) {
    const int groups = (C + GROUP - 1) / GROUP;
    if (blockIdx.x >= groups) {
        add_share(blockIdx.x - groups, shares, total, count, size);
        return;
    }
    int c = blockIdx.x * GROUP + threadIdx.x % GROUP;
    double both[2];
    add_partials(partials, blocks, C, c, both);
    if (c < C && threadIdx.x < GROUP) sums[c] = both[0];
}

// Mean and variance from the sums of values, less a shift (its ReLU, if so), and of their squares. If the mean lies 1,000
// deviations from the shift, the squares lose 1e6 * 2^-53 of the variance: nothing for a float, too much for a double.
// With gamma also norm (3, C): mean, scale = gamma / sqrt(variance + epsilon), beta.
extern "C" __global__ void __launch_bounds__(512) finish_moments(
    const double *partials, const real *shift, const real *gamma, const real *beta, real *mean, real *variance, real *norm,
    int relu, int blocks, int C, double count, double epsilon) {
    int c = blockIdx.x * GROUP + threadIdx.x % GROUP;
    double total[2];
    add_partials(partials, blocks, C, c, total);
    if (c >= C || threadIdx.x >= GROUP) return;
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

// grad_rows (4, C): mean, scale, gbeta / count, ggamma / sqrt(variance + epsilon) / count; and ggamma, gbeta.
struct NormGrad {
    const real *gamma, *mean, *variance;
    real *grad_rows, *ggamma, *gbeta;
    int C;
    real epsilon, count;
};

// first and second: the sums of gy and of gy * (x - mean).
__device__ void write_norm_grad(const NormGrad &o, int c, real first, real second) {
    real inverse_deviation = 1 / sqrt(o.variance[c] + o.epsilon);
    o.gbeta[c] = first;
    o.ggamma[c] = second * inverse_deviation;
    o.grad_rows[c] = o.mean[c];
    o.grad_rows[o.C + c] = o.gamma[c] * inverse_deviation;
    o.grad_rows[2 * o.C + c] = first / o.count;
    o.grad_rows[3 * o.C + c] = o.ggamma[c] * inverse_deviation / o.count;
}

extern "C" __global__ void norm_grad_rows(
    const real *sums, const real *gamma, const real *mean, const real *variance, real *grad_rows, real *ggamma, real *gbeta,
    int C, real epsilon, real count) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < C) write_norm_grad({gamma, mean, variance, grad_rows, ggamma, gbeta, C, epsilon, count}, c, sums[c], sums[C + c]);
}

// The same from partials (blocks, 2, C): the sums of gy and of gy * x.
extern "C" __global__ void __launch_bounds__(512) finish_norm_grad(
    const double *partials, const real *gamma, const real *mean, const real *variance, real *grad_rows, real *ggamma,
    real *gbeta, int blocks, int C, real epsilon, real count) {
    int c = blockIdx.x * GROUP + threadIdx.x % GROUP;
    double total[2];
    add_partials(partials, blocks, C, c, total);
    if (c >= C || threadIdx.x >= GROUP) return;
    NormGrad o = {gamma, mean, variance, grad_rows, ggamma, gbeta, C, epsilon, count};
    write_norm_grad(o, c, total[0], total[1] - mean[c] * total[0]);
}

extern "C" __global__ void batch_norm_update(
    real *moving_mean, real *moving_variance, const real *mean, const real *variance, int C, real momentum, real rest) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    moving_mean[c] = momentum * moving_mean[c] + rest * mean[c];
    moving_variance[c] = momentum * moving_variance[c] + rest * variance[c];
}
