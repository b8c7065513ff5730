// The transform of hadamard.h on a GPU. Compiled only where nvcc is.
#pragma once

#include "hadamard.h"

namespace onnxq {

// Starts y = x * (F (x) S / sqrt(2^k)) on `stream` (a cudaStream_t); all pointers are on the
// device, and y may be x. Returns null, or what CUDA says is wrong.
const char* hadamard_on_cuda(const float* x, float* y, int64_t rows, HadamardSize size,
                             const float* factor, void* stream);

}  // namespace onnxq
