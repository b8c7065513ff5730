// Element types of activations and results on a GPU: float32 and float16.
#pragma once

#include <cuda_fp16.h>

namespace onnxq::cuda {

__device__ inline float as_float(float value) { return value; }
__device__ inline float as_float(__half value) { return __half2float(value); }
__device__ inline void store(float* to, float value) { *to = value; }
__device__ inline void store(__half* to, float value) { *to = __float2half_rn(value); }

}  // namespace onnxq::cuda
