// ---- the gradient of a convolution's weight ----
//
// gweight[k, f] = sum over pixels m of a[k, m] * g[f, m]. blockIdx.z takes a share of the pixels and writes partial sums
// (shares, KH*KW*C, F), which `add_shares` adds. A block computes GK by GF of them, from GM pixels at a time. A thread reads
// four k, or four f, or both, of four pixels.

const int GM = DEEP, GK = LARGE, GF = 64, LINES = 256 / (GM / 4) * 4;  // that the threads can read

// Number e of each of the four.
template <class T>
__device__ Four<T> each(const Four<T> *fours, int e) {
    Four<T> found = {};
#pragma unroll
    for (int i = 0; i < 4; i++) found.set(i, fours[i].get(e));
    return found;
}

extern "C" __global__ void __launch_bounds__(256, sizeof(real) == 4 ? 2 : 1) weight_gradient(
    const x_real *x, const real *x_norm, const y_real *g, const real *g_norm, real *shares, int N, int H, int W, int C, int OH,
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
    const int to_row = (SH * W - OW * SW) * C, to_image = (H - OH * SH) * W * C;  // in x, from beyond the end of the last

    // Of four pixels. Where there are threads enough for all lines, none reads both a and b, and they share their registers.
    Four<x_real> a[4];
    Four<y_real> others[4];
    Four<y_real> *const b = LINES < GK + GF ? others : (Four<y_real> *)a;
    int inside = 0;  // bit i: whether a[i] is to be normalised
    int m = first + pixel;
    auto read = [&]() {
        Place p = pixels.place(m);
        int row = p.row * SH + tap_row, col = p.col * SW + tap_col;
        const x_real *from = x + ((long long)(p.image * H + row) * W + col) * C + channel;
        const y_real *const g_from = g + (size_t)m * F + f;
        inside = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            a[i] = {};
            b[i] = {};
            if (m + i < last && reads_x && x_quads) {  // all four are of one tap
                if ((unsigned)row < H && (unsigned)col < W) {
                    inside |= 1 << i;
                    a[i] = *(const Four<x_real> *)from;
                }
            } else if (m + i < last && reads_x) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int c = (k + e) % C, tap = (k + e) / C;
                    const unsigned row = p.row * SH + tap / KW - top, col = p.col * SW + tap % KW - left;
                    if (k + e >= K || row >= H || col >= W) continue;
                    const real value(x[((p.image * H + (int)row) * W + (int)col) * C + c]);
                    a[i].set(e, x_real(x_norm ? (value - x_norm[c]) * x_norm[C + c] + x_norm[2 * C + c] : value));
                }
            }
            if (m + i < last && reads_g) b[i] = read4(g_from + i * F, 0, F - f, g_quads);
            col += SW, from += SW * C;
            if (++p.col == OW) {
                p.col = 0, col = tap_col, row += SH, from += to_row;
                if (++p.row == OH) p.row = 0, p.image++, row = tap_row, from += to_image;
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
            if (line < GK) *(Four<Part::Factor> *)&as[line + e][pixel] = part.factors(each(a, e));
            if (g_line >= 0) *(Four<Part::Factor> *)&gs[g_line + e][pixel] = part.factors(each(b, e));
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
