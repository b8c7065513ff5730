#include "hadamard_cuda.h"

#include "hadamard_cuda_kernels.h"

namespace {

template <class Element>
__global__ void transform_rows(const Element* x, Element* y, int factor_size, int power,
                               const Element* factor, float scale) {
  onnxq::cuda::transform_row(x, y, factor_size, power, factor, scale);
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
  how.blockDim = dim3(onnxq::cuda::kRowThreads);
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
