// MatMulLut on a GPU. Compiled only where nvcc is.
#pragma once

#include "../matmul/matmul_cuda.h"

extern "C" {

// Arrays as they are stored (see onnxq.formats.LutFormat), on the device.
struct onnxq_lut {
  const uint8_t* codes;    // [rows, ceil(columns * bits / 8)]
  const void* lut;         // [lut_rows, lut_groups, 2^bits], int8 or float16
  const uint16_t* scales;  // [scale_rows, scale_groups], float16
  int64_t group, lut_rows, lut_groups, scale_rows, scale_groups;
  int32_t bits, is_half;  // of the tables: float16, else int8
};

// Starts Y = A W^T on `stream`. Null, or what is wrong.
ONNXQ_EXPORT const char* onnxq_matmul_lut_cuda(const onnxq_matmul* call, const onnxq_lut* weight,
                                               void* stream);
}
