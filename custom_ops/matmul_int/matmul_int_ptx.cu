// MatMulInt as kernels of PTX: by bits, 0 for any.
#include "../matmul/matmul_cuda_any.h"
#include "matmul_int_decode.h"

namespace onnxq::cuda {

#define ONNXQ_ENTRY(NAME, VARIANT, ELEMENT)                                                  \
  extern "C" __global__ void __launch_bounds__(kThreads)                                     \
      NAME(const void* a, const uint8_t* codes, const void* scales, const int8_t* ratios,    \
           const uint8_t* zeros, int32_t tokens, int32_t rows, int32_t columns,              \
           int32_t activation_bits, int32_t group, int32_t scale_rows, int32_t scale_groups, \
           int32_t zero_rows, int32_t bits, int32_t is_signed, int32_t is_half,              \
           int32_t has_ratios, void* y) {                                                    \
    const onnxq_int stored = {codes,                                                         \
                              scales,                                                        \
                              has_ratios ? ratios : nullptr,                                 \
                              is_signed ? nullptr : zeros,                                   \
                              group,                                                         \
                              scale_rows,                                                    \
                              scale_groups,                                                  \
                              zero_rows,                                                     \
                              bits,                                                          \
                              is_signed,                                                     \
                              is_half};                                                      \
    multiply_any<IntWeight<VARIANT>, ELEMENT>(                                               \
        call_of<ELEMENT>(a, y, tokens, rows, columns, activation_bits, 0), stored);          \
  }

ONNXQ_ENTRY(onnxq_matmul_int_0_f32, 0, float)
ONNXQ_ENTRY(onnxq_matmul_int_0_f16, 0, __half)
ONNXQ_ENTRY(onnxq_matmul_int_2_f32, 2, float)
ONNXQ_ENTRY(onnxq_matmul_int_2_f16, 2, __half)
ONNXQ_ENTRY(onnxq_matmul_int_3_f32, 3, float)
ONNXQ_ENTRY(onnxq_matmul_int_3_f16, 3, __half)
ONNXQ_ENTRY(onnxq_matmul_int_4_f32, 4, float)
ONNXQ_ENTRY(onnxq_matmul_int_4_f16, 4, __half)

}  // namespace onnxq::cuda
