// The transform of hadamard.h on a GPU. Compiled only where nvcc is.
#pragma once

#include "../matmul/matmul_cuda.h"

extern "C" {

// Starts y = x * (F (x) S / sqrt(power)) on `stream` (a cudaStream_t) for rows of `order` times
// `power` numbers, float16 or float32 as F and y, summed in float32; F is [order, order]. All
// pointers are on the device, and y may be x. Null, or what is wrong.
ONNXQ_EXPORT const char* onnxq_hadamard_cuda(const void* x, void* y, int64_t rows, int64_t order,
                                             int64_t power, const void* factor, int32_t is_half,
                                             void* stream);
}
