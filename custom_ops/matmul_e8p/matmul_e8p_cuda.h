// MatMulE8p on a GPU. Compiled only where nvcc is.
#pragma once

#include "../matmul/matmul_cuda.h"

extern "C" {

// Arrays as they are stored (see onnxq.formats.E8pFormat), on the device.
struct onnxq_e8p {
  const uint8_t* codes;    // [rows, columns * bits / 8]
  const uint16_t* scales;  // [scale_rows, 1], float16
  int64_t scale_rows;
  int32_t bits;  // 2, 3 or 4
};

// Starts Y = A W^T on `stream`. Null, or what is wrong.
ONNXQ_EXPORT const char* onnxq_matmul_e8p_cuda(const onnxq_matmul* call, const onnxq_e8p* weight,
                                               void* stream);
}
