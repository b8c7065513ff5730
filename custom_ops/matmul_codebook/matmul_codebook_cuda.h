// MatMulCodebook on a GPU. Compiled only where nvcc is.
#pragma once

#include "../matmul/matmul_cuda.h"

extern "C" {

// Arrays as they are stored (see onnxq.formats.CodebookFormat), on the device.
struct onnxq_codebook {
  const uint8_t* codes;    // [rows, ceil(columns / dimension * books * code_bits / 8)]
  const int8_t* codebook;  // [row blocks, column blocks, books, 2^code_bits, dimension]
  const uint16_t* scales;  // [scale_rows, groups], float16
  int64_t group, scale_rows;
  int64_t block_rows, block_columns;  // that share books
  int32_t dimension, code_bits, books;
};

// Starts Y = A W^T on `stream`. Null, or what is wrong.
ONNXQ_EXPORT const char* onnxq_matmul_codebook_cuda(const onnxq_matmul* call,
                                                    const onnxq_codebook* weight, void* stream);
}
