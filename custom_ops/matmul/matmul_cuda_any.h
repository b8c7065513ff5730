// Y = A W^T for any number of tokens by one kernel, for who starts kernels without the functions of
// <op>_cuda.h and chooses one before the number of tokens is known: TensorRT, from PTX. Files
// <op>_ptx.cu instantiate it; onnxq.custom_ops.tensorrt.nodes says how a node starts it.
#pragma once

#include <type_traits>

#include "matmul_cuda_kernels.h"

namespace onnxq::cuda {

// A weight is made from `stored`, its struct of <op>_cuda.h.
// Blocks are as for `multiply_few` with 1 token, with 4 up to kFew, and as for `multiply_many`.
template <class Weight, class Element, class Stored>
__device__ __forceinline__ void multiply_any(const onnxq_matmul& call, const Stored& stored) {
  using Cores = std::conditional_t<std::is_same_v<Element, float>, FloatCores, HalfCores>;
  union Shared {
    FewShared<Weight, 1> one;
    FewShared<Weight, 4> few;
    ManyShared<Weight, Cores> many;
  };
  __shared__ Shared block;
  const Weight weight(stored, call);
  if (call.tokens == 1) {
    multiply_few_block<Weight, Element>(call, weight, block.one);
  } else if (call.tokens <= kFew) {
    multiply_few_block<Weight, Element>(call, weight, block.few);
  } else {
    multiply_many_block<Weight, Element>(call, weight, block.many);
  }
}

template <class Element>
__device__ __forceinline__ onnxq_matmul call_of(const void* a, void* y, int32_t tokens,
                                                int32_t rows, int32_t columns,
                                                int32_t activation_bits, int32_t activation_span) {
  return {a,
          y,
          tokens,
          rows,
          columns,
          !std::is_same_v<Element, float>,
          activation_bits,
          activation_span};
}

}  // namespace onnxq::cuda
