// One block of threads for each row, which stays in shared memory from the first stage to the last.
#include <cuda_runtime.h>

#include "../matmul/element.h"
#include "hadamard_cuda.h"

extern __shared__ float onnxq_hadamard_row[];

namespace {

constexpr int kThreads = 256;

template <class Element>
__global__ void transform_rows(const Element* x, Element* y, int factor_size, int power,
                               const Element* factor, float scale) {
  using namespace onnxq::cuda;
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
        sum = fmaf(row[input * power + column], as_float(factor[input * factor_size + output]), sum);
      }
    }
    store(y + at, sum);
  }
}

template <class Element>
cudaError_t start(const Element* x, Element* y, int64_t rows, int64_t order, int64_t power,
                  const Element* factor, int64_t bytes, void* stream) {
  if (bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(transform_rows<Element>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes));
    if (error != cudaSuccess) return error;
  }
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(power));
  cudaLaunchConfig_t how = {};
  how.gridDim = dim3(static_cast<unsigned>(rows));
  how.blockDim = dim3(kThreads);
  how.dynamicSmemBytes = static_cast<size_t>(bytes);
  how.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&how, transform_rows<Element>, x, y, static_cast<int>(order),
                            static_cast<int>(power), factor, scale);
}

}  // namespace

const char* onnxq_hadamard_cuda(const void* x, void* y, int64_t rows, int64_t order, int64_t power,
                                const void* factor, int32_t is_half, void* stream) {
  if (rows == 0) return nullptr;
  const int64_t bytes = order * power * static_cast<int64_t>(sizeof(float));
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error == cudaSuccess && bytes > most) return "a row does not fit the shared memory";
  if (error == cudaSuccess) {
    const auto started = [&](auto zero) {
      using Element = decltype(zero);
      return start(static_cast<const Element*>(x), static_cast<Element*>(y), rows, order, power,
                   static_cast<const Element*>(factor), bytes, stream);
    };
    error = is_half ? started(__half{}) : started(float{});
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
