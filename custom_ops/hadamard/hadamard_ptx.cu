// Hadamard as kernels of PTX.
#include "hadamard_cuda_kernels.h"

namespace onnxq::cuda {

#define ONNXQ_ENTRY(NAME, ELEMENT)                                                              \
  extern "C" __global__ void NAME(const ELEMENT* x, const ELEMENT* factor, int32_t factor_size, \
                                  int32_t power, ELEMENT* y) {                                  \
    const float scale = 1.0f / sqrtf(static_cast<float>(power));                                \
    transform_row(x, y, factor_size, power, factor, scale);                                     \
  }

ONNXQ_ENTRY(onnxq_hadamard_f32, float)
ONNXQ_ENTRY(onnxq_hadamard_f16, __half)

}  // namespace onnxq::cuda
