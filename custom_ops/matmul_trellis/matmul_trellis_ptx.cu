// MatMulTrellis as kernels of PTX: by the code, as TrellisCode numbers it.
#include "../matmul/matmul_cuda_any.h"
#include "matmul_trellis_decode.h"

namespace onnxq::cuda {

#define ONNXQ_ENTRY(NAME, VARIANT, ELEMENT)                                                   \
  extern "C" __global__ void __launch_bounds__(kThreads)                                      \
      NAME(const void* a, const uint8_t* codes, const uint16_t* scales, int32_t tokens,       \
           int32_t rows, int32_t columns, int32_t activation_bits, int32_t scale_rows,        \
           int32_t step_bits, int32_t state_bits, void* y) {                                  \
    const onnxq_trellis stored = {codes, scales, scale_rows, step_bits, state_bits, VARIANT}; \
    multiply_any<TrellisWeight<static_cast<TrellisCode>(VARIANT)>, ELEMENT>(                  \
        call_of<ELEMENT>(a, y, tokens, rows, columns, activation_bits, 0), stored);           \
  }

ONNXQ_ENTRY(onnxq_matmul_trellis_0_f32, 0, float)
ONNXQ_ENTRY(onnxq_matmul_trellis_0_f16, 0, __half)
ONNXQ_ENTRY(onnxq_matmul_trellis_1_f32, 1, float)
ONNXQ_ENTRY(onnxq_matmul_trellis_1_f16, 1, __half)
ONNXQ_ENTRY(onnxq_matmul_trellis_2_f32, 2, float)
ONNXQ_ENTRY(onnxq_matmul_trellis_2_f16, 2, __half)

}  // namespace onnxq::cuda
