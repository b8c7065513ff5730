#include "../matmul/matmul_cuda_kernels.h"
#include "matmul_e8p_decode.h"

const char* onnxq_matmul_e8p_cuda(const onnxq_matmul* call, const onnxq_e8p* weight, void* stream) {
  using namespace onnxq::cuda;
  if (weight->bits < 2 || weight->bits > 4) return "E8P has 2, 3 or 4 bits per weight";
  if (call->columns % kOctet != 0) return "columns must be a multiple of 8";
  const auto multiply = [&](auto bits) {
    const E8pWeight<decltype(bits)::value> decoded(*weight, *call);
    return call->tokens > kFew ? multiply_many_tokens(*call, decoded, stream)
                               : multiply_few_tokens(*call, decoded, stream);
  };
  switch (weight->bits) {
    case 2:
      return multiply(Bits<2>{});
    case 3:
      return multiply(Bits<3>{});
    default:
      return multiply(Bits<4>{});
  }
}
