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
