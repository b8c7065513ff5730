// MatMulInt on a GPU. Compiled only where nvcc is.
#pragma once

#include "../matmul/matmul_cuda.h"

extern "C" {

// Arrays as they are stored (see StoredIntegers in stored.h), on the device.
struct onnxq_int {
  const uint8_t* codes;  // [rows, ceil(columns * bits / 8)]
  const void* scales;    // [scale_rows, scale_groups], float32 or float16
  const int8_t* ratios;  // [rows, groups], or null
  const uint8_t* zeros;  // [zero_rows, ceil(groups * bits / 8)], or null
  int64_t group, scale_rows, scale_groups, zero_rows;
  int32_t bits, is_signed;
  int32_t is_half;  // of the scales: float16, else float32
};

// Starts Y = A W^T on `stream`. Null, or what is wrong.
ONNXQ_EXPORT const char* onnxq_matmul_int_cuda(const onnxq_matmul* call, const onnxq_int* weight,
                                               void* stream);
}
