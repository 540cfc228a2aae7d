// total[i] = sum over s of shares[s, i]. A block of 512 threads has 64 numbers; each of its 8 rows adds every 8th share.
__device__ void add_share(int block, const real *shares, real *total, int count, int size) {
    __shared__ double sums[8][64];
    const int lane = threadIdx.x % 64, ty = threadIdx.x / 64, i = block * 64 + lane;
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
    add_share(blockIdx.x, shares, total, count, size);
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
