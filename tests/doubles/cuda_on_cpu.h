// As much of CUDA C++ as the CUDA source uses, on a CPU: see cuda_on_cpu.py.
//
// Each CUDA thread is a fiber; blocks run one after another. A fiber runs until it waits for others; which one is next is
// drawn anew each time, so that a barrier that is missing shows. Two things are waited for: all threads of the block at a
// barrier, and all 32 lanes of the warp where they exchange values, which orders nothing between warps. It is an error if
// some of them do not come.

#undef _FORTIFY_SOURCE  // it takes a jump from one stack to another for a fault
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

using std::exp, std::fabs, std::log1p, std::sqrt;

#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint3 {
    unsigned x, y, z;
};
static uint3 gridDim, blockDim, blockIdx, threadIdx;

namespace emulation {

const size_t STACK = 64 << 10;
struct Fiber {  // runs one thread after another
    uint3 index;
    bool done;
    bool started = false;
    jmp_buf place;  // where it goes on, once started
    std::unique_ptr<char[]> stack{new char[STACK]};
};
typedef void Operation(void *const *values);  // on what the 32 lanes of a warp brought
struct Warp {
    int arrived;
    Operation *operation;
    void *values[32];
};
static std::vector<Fiber> fibers;  // by thread
static std::vector<Warp> warps;
static std::vector<unsigned> runnable;  // the last one is next
static unsigned threads, current, at_barrier;
static jmp_buf scheduler;
static std::mt19937 random;
static std::function<void()> body;

static uint3 index_of(unsigned i) { return {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y}; }

static void shuffle() { std::shuffle(runnable.begin(), runnable.end(), random); }

static void give_way() {
    if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

static void start() {
    for (;;) {
        body();
        fibers[current].done = true;
        give_way();
    }
}

static void resume(unsigned thread) {
    Fiber &fiber = fibers[current = thread];
    threadIdx = fiber.index;
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.get();
    context.uc_stack.ss_size = STACK;
    makecontext(&context, start, 0);
    setcontext(&context);
}

// 0; 1 if not all threads came to a barrier; 2 if not all lanes of a warp came to an exchange.
static int run_block() {
    warps.assign((threads + 31) / 32, Warp());
    if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
    for (unsigned i = 0; i < threads; i++) {
        fibers[i].index = index_of(i);
        fibers[i].done = false;
        runnable.push_back(i);
    }
    shuffle();
    unsigned done = at_barrier = 0;
    while (!runnable.empty()) {
        unsigned next = runnable.back();
        runnable.pop_back();
        resume(next);
        done += fibers[next].done;
    }
    if (done == threads) return 0;
    fibers.clear();  // they wait inside the kernel
    return done + at_barrier == threads ? 1 : 2;
}

// sizes: grid x, y, z, block x, y, z.
static int run(const unsigned *sizes, unsigned seed, std::function<void()> kernel) {
    random.seed(seed);
    body = kernel;
    gridDim = {sizes[0], sizes[1], sizes[2]};
    blockDim = {sizes[3], sizes[4], sizes[5]};
    threads = sizes[3] * sizes[4] * sizes[5];
    for (unsigned z = 0; z < sizes[2]; z++)
        for (unsigned y = 0; y < sizes[1]; y++)
            for (unsigned x = 0; x < sizes[0]; x++) {
                blockIdx = {x, y, z};
                if (int fault = run_block()) return fault;
            }
    return 0;
}

// Wait for the 32 lanes of this warp; the last one then does the operation on what each brought. Lanes that came for
// another operation wait for ever. Now and then the warp runs on before all others.
static void exchange(void *value, Operation *operation) {
    Warp &warp = warps[current / 32];
    if (warp.arrived && warp.operation != operation) give_way();
    warp.operation = operation;
    warp.values[current % 32] = value;
    if (++warp.arrived < 32) return give_way();
    warp.arrived = 0;
    operation(warp.values);
    for (unsigned i = current / 32 * 32; i < current / 32 * 32 + 32; i++)
        if (i != current) runnable.push_back(i);
    if (random() % 2) shuffle();
}

}  // namespace emulation

static void __syncthreads() {
    using namespace emulation;
    if (++at_barrier == threads) {
        at_barrier = 0;
        for (unsigned i = 0; i < threads; i++) runnable.push_back(i);
        shuffle();
    }
    give_way();
}

// The value of lane `lane ^ lane_mask`. All lanes take part: mask is 0xffffffff.
template <class T>
static T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
    struct Lane {
        T value, result;
        int from;
    } lane = {value, value, int(emulation::current % 32) ^ lane_mask};
    if (mask != 0xffffffff) emulation::give_way();  // for ever
    emulation::exchange(&lane, [](void *const *lanes) {
        for (int i = 0; i < 32; i++) {
            Lane *to = (Lane *)lanes[i];
            to->result = ((Lane *)lanes[to->from])->value;
        }
    });
    return lane.result;
}

// x rounded to TF32, as cvt.rn.tf32.f32 does: 10 bits after the point, ties to even.
static float tf32(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    if (std::isfinite(x)) bits = (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fff;  // may become infinite
    if (std::isnan(x)) bits = 0x7fffffff;
    std::memcpy(&x, &bits, 4);
    return x;
}

static float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Both rounded to bf16, as cvt.rn.bf16x2.f32 does: 7 bits after the point, ties to even; the first in the lower half.
static unsigned pack_bf16(float first, float second) {
    unsigned halves[2];
    for (int i = 0; i < 2; i++) {
        const float x = i ? second : first;
        std::memcpy(&halves[i], &x, 4);
        if (std::isfinite(x)) halves[i] += 0x7fff + (halves[i] >> 16 & 1);  // may become infinite
        halves[i] = std::isnan(x) ? 0x7fff : halves[i] >> 16;
    }
    return halves[0] | halves[1] << 16;
}

// The lanes' numbers of four matrices (8, 4), whose rows they bring, as the CUDA source describes.
template <class T>
static void load_matrices(T *numbers, const void *row) {
    struct Lane {
        T *numbers;
        const T *row;
    } lane = {numbers, (const T *)row};
    if ((size_t)row % 16) emulation::give_way();  // for ever: a GPU would stop
    emulation::exchange(&lane, [](void *const *values) {
        Lane *const *lanes = (Lane *const *)values;
        for (int l = 0; l < 32; l++)
            for (int i = 0; i < 4; i++) lanes[l]->numbers[i] = lanes[8 * i + l / 4]->row[l % 4];
    });
}

static float part(float number, int) { return number; }
static float part(unsigned pair, int i) { return __uint_as_float(i ? pair & 0xffff0000 : pair << 16); }

// The tensor cores' product that the CUDA source describes, of numbers that are rounded already: c (16, 8) += a (16, 8 PAIR)
// b (8 PAIR, 8), where a fragment of TF32 holds one number and one of bf16 a pair.
template <class T>
static void mma(float *upper, float *lower, const T *a, const T *b) {
    const int PAIR = std::is_same<T, float>::value ? 1 : 2;
    struct Lane {
        float *c[2];
        const T *a, *b;
    } lane = {{upper, lower}, a, b};
    emulation::exchange(&lane, [](void *const *values) {
        Lane *const *lanes = (Lane *const *)values;
        for (int m = 0; m < 16; m++)
            for (int n = 0; n < 8; n++) {
                float &c = lanes[m % 8 * 4 + n / 2]->c[m / 8][n % 2];
                for (int k = 0; k < 8 * PAIR; k++) {
                    const int t = k / PAIR % 4, half = k / PAIR / 4;
                    const T of_a = lanes[m % 8 * 4 + t]->a[half * 2 + m / 8], of_b = lanes[n * 4 + t]->b[half];
                    c += part(of_a, k % PAIR) * part(of_b, k % PAIR);
                }
            }
    });
}
