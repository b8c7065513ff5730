// MatMulTernary as kernels of PTX.
#include "../matmul/matmul_cuda_any.h"
#include "matmul_ternary_decode.h"

namespace onnxq::cuda {

#define ONNXQ_ENTRY(NAME, ELEMENT)                                                                \
  extern "C" __global__ void __launch_bounds__(kThreads)                                          \
      NAME(const void* a, const uint8_t* codes, const void* scales, int32_t tokens, int32_t rows, \
           int32_t columns, int32_t activation_bits, int32_t group, int32_t scale_rows,           \
           int32_t planes, int32_t is_half, void* y) {                                            \
    const onnxq_ternary stored = {codes, scales, group, scale_rows, planes, is_half};             \
    multiply_any<TernaryWeight, ELEMENT>(                                                         \
        call_of<ELEMENT>(a, y, tokens, rows, columns, activation_bits, 0), stored);               \
  }

ONNXQ_ENTRY(onnxq_matmul_ternary_f32, float)
ONNXQ_ENTRY(onnxq_matmul_ternary_f16, __half)

}  // namespace onnxq::cuda
