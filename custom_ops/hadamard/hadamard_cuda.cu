// One block of threads for each row, which stays in shared memory from the first stage to the last.
#include <cuda_runtime.h>

#include "hadamard_cuda.h"

extern __shared__ float onnxq_hadamard_row[];

namespace {

constexpr int kThreads = 256;

__global__ void transform_rows(const float* x, float* y, int factor_size, int power,
                               const float* factor, float scale) {
  float* const row = onnxq_hadamard_row;
  const int width = factor_size * power;
  x += static_cast<int64_t>(blockIdx.x) * width;
  y += static_cast<int64_t>(blockIdx.x) * width;
  for (int at = threadIdx.x; at < width; at += blockDim.x) row[at] = x[at] * scale;
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
        sum = fmaf(row[input * power + column], factor[input * factor_size + output], sum);
      }
    }
    y[at] = sum;
  }
}

}  // namespace

const char* onnxq_hadamard_cuda(const float* x, float* y, int64_t rows, int64_t order,
                                int64_t power, const float* factor, void* stream) {
  if (rows == 0) return nullptr;
  const int64_t bytes = order * power * static_cast<int64_t>(sizeof(float));
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error == cudaSuccess && bytes > most) return "a row does not fit the shared memory";
  if (error == cudaSuccess && bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(transform_rows, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(bytes));
  }
  if (error == cudaSuccess) {
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(power));
    cudaLaunchConfig_t how = {};
    how.gridDim = dim3(static_cast<unsigned>(rows));
    how.blockDim = dim3(kThreads);
    how.dynamicSmemBytes = static_cast<size_t>(bytes);
    how.stream = static_cast<cudaStream_t>(stream);
    error = cudaLaunchKernelEx(&how, transform_rows, x, y, static_cast<int>(order),
                               static_cast<int>(power), factor, scale);
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
