// As much of CUDA as the kernels of onnxq need, on a CPU: the .cu files compile as plain C++ with
// this folder in front of the include paths, and run a block after the other, each of its threads
// as a coroutine. Threads that meet at a barrier really wait for each other; one that some never
// reach ends the program. Speed, and what hardware does below the language, are not tested by this.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __align__(bytes) __attribute__((aligned(bytes)))
// All threads of a block are coroutines of one thread of the CPU.
#define __shared__ thread_local

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline const char* cudaGetErrorString(cudaError_t) { return "an error on the CPU"; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline thread_local dim3 threadIdx, blockIdx, gridDim, blockDim;

namespace cuda_on_cpu {

// Threads that wait until `count` of them are there.
struct Barrier {
  unsigned count = 0, arrived = 0, opened = 0;
};

// A block of threads, which runs as often as there are positions in the grid.
class Block {
 public:
  static constexpr unsigned kLanes = 32;

  Block(unsigned threads, const std::function<void()>& work)
      : threads_(threads), work_(work), warps_(threads / kLanes) {
    all_.count = threads;
    for (Barrier& warp : warps_) warp.count = kLanes;
    slots.resize(threads);
    for (Thread& thread : threads_) thread.stack.reset(new char[kStack]);
  }

  void run() {
    running = this;
    for (Thread& thread : threads_) {
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get();
      thread.context.uc_stack.ss_size = kStack;
      thread.context.uc_link = nullptr;
      thread.is_started = thread.done = false;
      makecontext(&thread.context, &Block::enter, 0);
    }
    for (unsigned left = static_cast<unsigned>(threads_.size()); left > 0;) {
      const unsigned before = progress_;
      for (current_ = 0; current_ < threads_.size(); ++current_) {
        if (threads_[current_].done) continue;
        threadIdx = dim3(current_);
        go_on(threads_[current_]);
        left -= threads_[current_].done;
      }
      if (progress_ == before) {
        std::fprintf(stderr, "a barrier is not reached by all threads\n");
        std::abort();
      }
    }
  }

  void wait_for_all() { wait(all_); }
  void wait_for_warp() { wait(warps_[threadIdx.x / kLanes]); }

  std::vector<float> slots;  // what lanes show each other
  static inline thread_local Block* running = nullptr;

 private:
  static constexpr size_t kStack = 1 << 17;
  struct Thread {
    ucontext_t context;  // of its start; where it waits later on
    jmp_buf waiting;
    std::unique_ptr<char[]> stack;
    bool is_started, done;
  };

  static void enter() {
    Block& block = *running;
    block.work_();
    block.threads_[block.current_].done = true;
    ++block.progress_;
    _longjmp(block.scheduler_, 1);
  }

  // Jumps rather than exchanges of contexts, which ask the kernel for signals each time.
  void go_on(Thread& thread) {
    if (_setjmp(scheduler_) != 0) return;
    if (thread.is_started) _longjmp(thread.waiting, 1);
    thread.is_started = true;
    setcontext(&thread.context);
  }

  void wait(Barrier& barrier) {
    const unsigned me = current_, opened = barrier.opened;
    if (++barrier.arrived == barrier.count) {
      barrier.arrived = 0;
      ++barrier.opened;
      ++progress_;
      return;
    }
    while (barrier.opened == opened) {
      if (_setjmp(threads_[me].waiting) == 0) _longjmp(scheduler_, 1);
    }
  }

  std::vector<Thread> threads_;
  const std::function<void()>& work_;
  std::vector<Barrier> warps_;
  Barrier all_;
  jmp_buf scheduler_;
  unsigned current_ = 0, progress_ = 0;
};

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::Block::running->wait_for_all(); }

inline float __shfl_xor_sync(unsigned, float value, int step) {
  cuda_on_cpu::Block& block = *cuda_on_cpu::Block::running;
  const unsigned me = threadIdx.x;
  block.slots[me] = value;
  block.wait_for_warp();
  const float other = block.slots[me ^ static_cast<unsigned>(step)];
  block.wait_for_warp();
  return other;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* how, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  gridDim = how->gridDim;
  blockDim = how->blockDim;
  const std::function<void()> work = [&] { kernel(arguments...); };
  cuda_on_cpu::Block block(how->blockDim.x, work);
  for (unsigned y = 0; y < how->gridDim.y; ++y) {
    for (unsigned x = 0; x < how->gridDim.x; ++x) {
      blockIdx = dim3(x, y);
      block.run();
    }
  }
  return cudaSuccess;
}

// What a launch of the transform asks of a device (hadamard_cuda.cu).
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = 227 * 1024, cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
