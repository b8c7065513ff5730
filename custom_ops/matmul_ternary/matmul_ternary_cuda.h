// MatMulTernary on a GPU. Compiled only where nvcc is.
#pragma once

#include "../matmul/matmul_cuda.h"

extern "C" {

// Arrays as they are stored (see onnxq.formats.TernaryFormat), on the device.
struct onnxq_ternary {
  const uint8_t* codes;  // [rows, planes * ceil(columns / 5)]
  const void* scales;    // [scale_rows, planes * groups], float32 or float16
  int64_t group, scale_rows;
  int32_t planes, is_half;  // 1 or 2; of the scales: float16, else float32
};

// Starts Y = A W^T on `stream`. Null, or what is wrong.
ONNXQ_EXPORT const char* onnxq_matmul_ternary_cuda(const onnxq_matmul* call,
                                                   const onnxq_ternary* weight, void* stream);
}
