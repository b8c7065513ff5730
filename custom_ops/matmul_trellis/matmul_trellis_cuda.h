// MatMulTrellis on a GPU. Compiled only where nvcc is.
#pragma once

#include "../matmul/matmul_cuda.h"

extern "C" {

// Arrays as they are stored (see onnxq.formats.TrellisFormat), on the device.
struct onnxq_trellis {
  const uint8_t* codes;    // [rows, columns / (weights of a step) * step_bits / 8]
  const uint16_t* scales;  // [scale_rows, 1], float16
  int64_t scale_rows;
  int32_t step_bits, state_bits;  // 1 to 4, of hyb 3 to 8; up to 16
  int32_t code;                   // 0: 1mad, 1: 3inst, 2: hyb
};

// Starts Y = A W^T on `stream`. Null, or what is wrong.
ONNXQ_EXPORT const char* onnxq_matmul_trellis_cuda(const onnxq_matmul* call,
                                                   const onnxq_trellis* weight, void* stream);
}
