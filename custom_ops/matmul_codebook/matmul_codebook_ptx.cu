// MatMulCodebook as kernels of PTX: by the numbers of an entry.
#include "../matmul/matmul_cuda_any.h"
#include "matmul_codebook_decode.h"

namespace onnxq::cuda {

#define ONNXQ_ENTRY(NAME, VARIANT, ELEMENT)                                                       \
  extern "C" __global__ void __launch_bounds__(kThreads)                                          \
      NAME(const void* a, const uint8_t* codes, const int8_t* codebook, const uint16_t* scales,   \
           int32_t tokens, int32_t rows, int32_t columns, int32_t activation_bits, int32_t group, \
           int32_t scale_rows, int32_t block_rows, int32_t block_columns, int32_t code_bits,      \
           int32_t books, void* y) {                                                              \
    const onnxq_codebook stored = {codes,      codebook,      scales,  group,     scale_rows,     \
                                   block_rows, block_columns, VARIANT, code_bits, books};         \
    multiply_any<CodebookWeight<VARIANT>, ELEMENT>(                                               \
        call_of<ELEMENT>(a, y, tokens, rows, columns, activation_bits, 0), stored);               \
  }

ONNXQ_ENTRY(onnxq_matmul_codebook_1_f32, 1, float)
ONNXQ_ENTRY(onnxq_matmul_codebook_1_f16, 1, __half)
ONNXQ_ENTRY(onnxq_matmul_codebook_2_f32, 2, float)
ONNXQ_ENTRY(onnxq_matmul_codebook_2_f16, 2, __half)
ONNXQ_ENTRY(onnxq_matmul_codebook_4_f32, 4, float)
ONNXQ_ENTRY(onnxq_matmul_codebook_4_f16, 4, __half)
ONNXQ_ENTRY(onnxq_matmul_codebook_8_f32, 8, float)
ONNXQ_ENTRY(onnxq_matmul_codebook_8_f16, 8, __half)

}  // namespace onnxq::cuda
