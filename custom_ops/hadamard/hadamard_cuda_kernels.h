// One block of threads for each row, which stays in shared memory from the first stage to the last.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../matmul/element.h"

extern __shared__ float onnxq_hadamard_row[];

namespace onnxq::cuda {

constexpr int kRowThreads = 256;  // of a block

// The row of this block.
template <class Element>
__device__ __forceinline__ void transform_row(const Element* x, Element* y, int factor_size,
                                              int power, const Element* factor, float scale) {
  float* const row = onnxq_hadamard_row;
  const int width = factor_size * power;
  x += static_cast<int64_t>(blockIdx.x) * width;
  y += static_cast<int64_t>(blockIdx.x) * width;
  for (int at = threadIdx.x; at < width; at += blockDim.x) row[at] = as_float(x[at]) * scale;
  __syncthreads();
  for (int step = 1; step < power; step *= 2) {
    for (int pair = threadIdx.x; pair < width / 2; pair += blockDim.x) {
      const int low = (pair / step) * 2 * step + pair % step;
      const float a = row[low], b = row[low + step];
      row[low] = a + b;
      row[low + step] = a - b;
    }
    __syncthreads();
  }
  for (int at = threadIdx.x; at < width; at += blockDim.x) {
    float sum = row[at];
    if (factor_size > 1) {
      const int output = at / power, column = at % power;
      sum = 0.0f;
      for (int input = 0; input < factor_size; ++input) {
        sum =
            fmaf(row[input * power + column], as_float(factor[input * factor_size + output]), sum);
      }
    }
    store(y + at, sum);
  }
}

}  // namespace onnxq::cuda
