// MatMulLut as kernels of PTX: by bits, 0 for any.
#include "../matmul/matmul_cuda_any.h"
#include "matmul_lut_decode.h"

namespace onnxq::cuda {

#define ONNXQ_ENTRY(NAME, VARIANT, ELEMENT)                                                       \
  extern "C" __global__ void __launch_bounds__(kThreads)                                          \
      NAME(const void* a, const uint8_t* codes, const void* lut, const uint16_t* scales,          \
           int32_t tokens, int32_t rows, int32_t columns, int32_t activation_bits, int32_t group, \
           int32_t lut_rows, int32_t lut_groups, int32_t scale_rows, int32_t scale_groups,        \
           int32_t bits, int32_t is_half, void* y) {                                              \
    const onnxq_lut stored = {codes,      lut,        scales,       group, lut_rows,              \
                              lut_groups, scale_rows, scale_groups, bits,  is_half};              \
    multiply_any<LutWeight<VARIANT>, ELEMENT>(                                                    \
        call_of<ELEMENT>(a, y, tokens, rows, columns, activation_bits, 128), stored);             \
  }

ONNXQ_ENTRY(onnxq_matmul_lut_0_f32, 0, float)
ONNXQ_ENTRY(onnxq_matmul_lut_0_f16, 0, __half)
ONNXQ_ENTRY(onnxq_matmul_lut_2_f32, 2, float)
ONNXQ_ENTRY(onnxq_matmul_lut_2_f16, 2, __half)
ONNXQ_ENTRY(onnxq_matmul_lut_3_f32, 3, float)
ONNXQ_ENTRY(onnxq_matmul_lut_3_f16, 3, __half)
ONNXQ_ENTRY(onnxq_matmul_lut_4_f32, 4, float)
ONNXQ_ENTRY(onnxq_matmul_lut_4_f16, 4, __half)

}  // namespace onnxq::cuda
