// ---- the product of two tiles in shared memory ----

#ifdef __CUDACC__  // not where the tests run this file on a CPU
// x rounded to TF32: 10 bits after the point, ties to even; before compute capability 9.0, which has an instruction for it,
// ties away from zero.
__device__ float tf32(float x) {
    unsigned bits;
#if __CUDA_ARCH__ >= 900
    asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#else
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
    return __uint_as_float(bits);
}

// c (16, 8) += a (16, 8) b (8, 8) by the 32 lanes of a warp: PTX ISA, matrix fragments for mma.m16n8k8. Lane 4 g + t
// brings a[g, t], a[g + 8, t], a[g, t + 4], a[g + 8, t + 4] and b[t, g], b[t + 4, g]; its part of c is c[g, 2 t] and
// c[g, 2 t + 1] (upper), c[g + 8, 2 t] and c[g + 8, 2 t + 1] (lower). For mma.m16n8k16 each of these numbers of a and b is a
// pair: a[g, t] stands for a[g, 2 t] in the lower half and a[g, 2 t + 1], b[t, g] for b[2 t, g] and b[2 t + 1, g].
__device__ void mma(float *upper, float *lower, const float *a, const float *b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
          "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}
__device__ void mma(float *upper, float *lower, const unsigned *a, const unsigned *b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices (8, 4) from shared memory: lane 8 i + r brings the place of row r of matrix i, 16 aligned bytes, and lane
// 4 g + t gets the number [g, t] of each. (PTX ISA, ldmatrix, which takes a number for two of 16 bits.)
__device__ void load_matrices(unsigned *numbers, const void *row) {
    asm volatile(
        "{\n .reg .u64 place;\n .reg .u32 shared;\n cvta.to.shared.u64 place, %4;\n cvt.u32.u64 shared, place;\n"
        " ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [shared];\n}"
        : "=r"(numbers[0]), "=r"(numbers[1]), "=r"(numbers[2]), "=r"(numbers[3]) : "l"(row) : "memory");
}
__device__ void load_matrices(float *numbers, const void *row) {
    unsigned n[4];
    load_matrices(n, row);
#pragma unroll
    for (int i = 0; i < 4; i++) numbers[i] = __uint_as_float(n[i]);
}
#endif

#if PRECISION == TF32X3
// The numbers become TF32, and low what TF32 keeps of the rest: together 21 bits. An infinity, whose rest is NaN, gives NaN.
__device__ void split(real (&numbers)[4], real (&low)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const real high = tf32(numbers[i]);
        low[i] = tf32(numbers[i] - high);
        numbers[i] = high;
    }
}
#endif

// A thread's part of c[m, n] = sum over k of a[m, k] * b[n, k], for a (BM, BK) and b (BN, BK): TM of the m by TN of the n.
// By itself it takes every ROWS-th m and every COLUMNS-th n. With the tensor cores a warp takes 8 TM by 4 TN of them, 16
// by 8 in each mma: its lane 4 g + t has g, g + 8, ... of the m, and 2 t and 2 t + 1 of every 8 of the n.
template <int BM, int BN, int BK, int TM, int TN>
struct Part {
#if PRECISION == BF16
    typedef bf16 Factor;        // what a and b hold
    typedef unsigned Fragment;  // what a lane brings of them to an mma: pairs
#else
    typedef real Factor, Fragment;
#endif
    static const int ROWS = BM / TM, COLUMNS = BN / TN, THREADS = ROWS * COLUMNS;
    static const int HALF = PRECISION == BF16 ? 8 : 4;  // of the k of an mma: 16 bytes
    static const int WIDTH = BK + HALF;  // of a row in memory: so rows that are read together lie in other banks
    typedef Factor A[BM][WIDTH];
    typedef Factor B[BN][WIDTH];
    typedef real C[BM][BN + 4];
    int y, x;  // the thread's place along m and n

    __device__ Part(int thread) {
        int warp = thread / 32, lane = thread % 32;
        y = PRECISION ? warp / (COLUMNS / 4) * 8 + lane / 4 : thread / COLUMNS;
        x = PRECISION ? warp % (COLUMNS / 4) * 4 + lane % 4 : thread % COLUMNS;
    }
    __device__ int row(int i) const { return PRECISION ? y / 8 * 8 * TM + i * 8 + y % 8 : y + i * ROWS; }
    __device__ int column(int j) const { return PRECISION ? x / 4 * 4 * TN + j / 2 * 8 + x % 4 * 2 + j % 2 : x + j * COLUMNS; }

    // Four numbers as they are stored in a or b.
    template <class T>
    __device__ static Four<Factor> factors(const Four<T> &values) {
        Four<Factor> found;
        assign(found, values);
#if PRECISION == TF32
        for (int e = 0; e < 4; e++) found.v[e] = tf32(found.v[e]);
#endif
        return found;
    }

    __device__ void add(const A &a, const B &b, real (&sums)[TM][TN]) const {
#if PRECISION
        const int lane = y % 8 * 4 + x % 4, matrix = lane / 8, line = lane % 8;
        const Factor *rows = &a[y / 8 * 8 * TM + matrix % 2 * 8 + line][matrix / 2 * HALF];
        const Factor *columns = &b[x / 4 * 4 * TN + matrix / 2 * 8 + line][matrix % 2 * HALF];
#pragma unroll
        for (int k = 0; k < BK; k += 2 * HALF) {
#if PRECISION == TF32X3  // the small products first; those of low and low would change no digit that is kept
#pragma unroll
            for (int i = 0; i < TM; i += 2) {  // few at a time, or there are not enough registers
                real a_now[4], low_a[4];
                load_matrices(a_now, rows + i * 8 * WIDTH + k);
                split(a_now, low_a);
#pragma unroll
                for (int j = 0; j < TN; j += 4) {
                    real b_now[4], low_b[4];
                    load_matrices(b_now, columns + j * 4 * WIDTH + k);
                    split(b_now, low_b);
#pragma unroll
                    for (int h = 0; h < 4; h += 2) {
                        real *upper = &sums[i][j + h], *lower = &sums[i + 1][j + h];
                        mma(upper, lower, a_now, &low_b[h]);
                        mma(upper, lower, low_a, &b_now[h]);
                        mma(upper, lower, a_now, &b_now[h]);
                    }
                }
            }
#else
            Fragment of_b[TN / 4][4], of_a[TM / 2][4];  // all of them before the first is needed
#pragma unroll
            for (int i = 0; i < TM; i += 2) load_matrices(of_a[i / 2], rows + i * 8 * WIDTH + k);
#pragma unroll
            for (int j = 0; j < TN / 4; j++) load_matrices(of_b[j], columns + j * 16 * WIDTH + k);
#pragma unroll
            for (int i = 0; i < TM; i += 2)
#pragma unroll
                for (int j = 0; j < TN; j += 2) mma(&sums[i][j], &sums[i + 1][j], of_a[i / 2], &of_b[j / 4][j % 4]);
#endif
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
    template <class T>
    __device__ void apply(Four<T> &numbers) const {
        real4 value = reals(numbers);
#pragma unroll
        for (int e = 0; e < 4; e++) value.v[e] = (value.v[e] - mean.v[e]) * scale.v[e] + beta.v[e];
        assign(numbers, value);
    }
};

// Numbers n ... n + 3 of a row of N numbers; 0 beyond the last.
template <class T>
__device__ Four<T> read4(const T *row, int n, int N, bool quads) {
    Four<T> values = {};
    if (quads) {
        if (n < N) values = *(const Four<T> *)&row[n];
    } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (n + e < N) values.set(e, row[n + e]);
    }
    return values;
}
