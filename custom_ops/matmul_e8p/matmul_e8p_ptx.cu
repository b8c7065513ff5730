// MatMulE8P as kernels of PTX: by bits.
#include "../matmul/matmul_cuda_any.h"
#include "matmul_e8p_decode.h"

namespace onnxq::cuda {

#define ONNXQ_ENTRY(NAME, VARIANT, ELEMENT)                                                       \
  extern "C" __global__ void __launch_bounds__(kThreads)                                          \
      NAME(const void* a, const uint8_t* codes, const uint16_t* scales, int32_t tokens,           \
           int32_t rows, int32_t columns, int32_t activation_bits, int32_t scale_rows, void* y) { \
    const onnxq_e8p stored = {codes, scales, scale_rows, VARIANT};                                \
    multiply_any<E8pWeight<VARIANT>, ELEMENT>(                                                    \
        call_of<ELEMENT>(a, y, tokens, rows, columns, activation_bits, 0), stored);               \
  }

ONNXQ_ENTRY(onnxq_matmul_e8p_2_f32, 2, float)
ONNXQ_ENTRY(onnxq_matmul_e8p_2_f16, 2, __half)
ONNXQ_ENTRY(onnxq_matmul_e8p_3_f32, 3, float)
ONNXQ_ENTRY(onnxq_matmul_e8p_3_f16, 3, __half)
ONNXQ_ENTRY(onnxq_matmul_e8p_4_f32, 4, float)
ONNXQ_ENTRY(onnxq_matmul_e8p_4_f16, 4, __half)

}  // namespace onnxq::cuda
