#include "../matmul/matmul_cuda_kernels.h"
#include "matmul_ternary_decode.h"

const char* onnxq_matmul_ternary_cuda(const onnxq_matmul* call, const onnxq_ternary* weight,
                                      void* stream) {
  using namespace onnxq::cuda;
  if (weight->planes < 1 || weight->planes > 2) return "ternary weights have 1 or 2 planes";
  if (weight->group < 1) return "a group has no columns";
  const TernaryWeight decoded(*weight, *call);
  return call->tokens > kFew ? multiply_many_tokens(*call, decoded, stream)
                             : multiply_few_tokens(*call, decoded, stream);
}
