// As much of CUDA C++ as kernels.cu uses, on a CPU: see cuda_on_cpu.py.
//
// Each CUDA thread is a fiber; blocks run one after another. At a barrier a fiber gives way to the next one, in an order
// drawn anew each time, so that a barrier that is missing shows. A barrier that not all threads of a block reach is an error.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

using std::exp, std::fabs, std::log1p, std::sqrt;

#define __device__
#define __shared__ static
#define __launch_bounds__(threads)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint3 {
    unsigned x, y, z;
};
static uint3 gridDim, blockDim, blockIdx, threadIdx;

namespace emulation {

const size_t STACK = 64 << 10;
struct Fiber {
    ucontext_t context;
    uint3 index;
    bool done;
    std::unique_ptr<char[]> stack{new char[STACK]};
};
static ucontext_t scheduler;
static Fiber *current;  // null: the thread runs to its end without giving way
static std::function<void()> body;
struct MissedBarrier {};

static uint3 index_of(unsigned i) { return {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y}; }

static void start() {
    body();
    current->done = true;
    swapcontext(&current->context, &scheduler);
}

static void resume(Fiber &fiber) {
    current = &fiber;
    threadIdx = fiber.index;
    swapcontext(&scheduler, &fiber.context);
    current = nullptr;
}

static void run_block(unsigned threads, std::mt19937 &random) {
    static std::vector<Fiber> fibers;
    if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
    std::vector<unsigned> order(threads);
    std::iota(order.begin(), order.end(), 0);
    for (unsigned done = 0, pass = 0; done < threads; pass++) {
        std::shuffle(order.begin(), order.end(), random);
        for (unsigned i : order) {
            Fiber &fiber = fibers[i];
            if (pass == 0 && done) {  // the first thread met no barrier, so the others meet none either
                threadIdx = index_of(i);
                body();
                done++;
                continue;
            }
            if (pass == 0) {
                fiber.index = index_of(i);
                fiber.done = false;
                getcontext(&fiber.context);
                fiber.context.uc_stack.ss_sp = fiber.stack.get();
                fiber.context.uc_stack.ss_size = STACK;
                makecontext(&fiber.context, start, 0);
            }
            resume(fiber);
            done += fiber.done;
        }
        if (done && done < threads) throw MissedBarrier();
    }
}

// 0, or 1 if a barrier was not reached by all threads of a block. sizes: grid x, y, z, block x, y, z.
static int run(const unsigned *sizes, unsigned seed, std::function<void()> kernel) {
    std::mt19937 random(seed);
    body = kernel;
    gridDim = {sizes[0], sizes[1], sizes[2]};
    blockDim = {sizes[3], sizes[4], sizes[5]};
    try {
        for (unsigned z = 0; z < sizes[2]; z++)
            for (unsigned y = 0; y < sizes[1]; y++)
                for (unsigned x = 0; x < sizes[0]; x++) {
                    blockIdx = {x, y, z};
                    run_block(sizes[3] * sizes[4] * sizes[5], random);
                }
    } catch (MissedBarrier) {
        return 1;
    }
    return 0;
}

}  // namespace emulation

static void __syncthreads() {
    using namespace emulation;
    Fiber *self = current;
    if (!self) throw MissedBarrier();
    swapcontext(&self->context, &scheduler);
}
