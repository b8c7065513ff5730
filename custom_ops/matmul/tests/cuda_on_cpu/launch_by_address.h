// Kernels started by address, as a driver starts those of PTX: arguments are words of 64 bits, of
// which a kernel reads as much as its parameters have.
#pragma once

#include "cuda_runtime.h"

extern "C" [[gnu::visibility("default")]] void run_kernel(void* kernel, const int64_t* words,
                                                          unsigned across, unsigned down,
                                                          unsigned threads) {
  using Word = int64_t;
  using Kernel = void (*)(Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word,
                          Word, Word, Word, Word, Word, Word, Word, Word);
  const auto start = [](void* address, const Word* w) {
    reinterpret_cast<Kernel>(address)(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9],
                                      w[10], w[11], w[12], w[13], w[14], w[15], w[16], w[17], w[18],
                                      w[19]);
  };
  cudaLaunchConfig_t how = {};
  how.gridDim = dim3(across, down);
  how.blockDim = dim3(threads);
  cudaLaunchKernelEx(&how, +start, kernel, words);
}
