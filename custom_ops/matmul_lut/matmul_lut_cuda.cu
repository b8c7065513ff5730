#include "../matmul/matmul_cuda_kernels.h"
#include "matmul_lut_decode.h"

const char* onnxq_matmul_lut_cuda(const onnxq_matmul* call, const onnxq_lut* weight, void* stream) {
  using namespace onnxq::cuda;
  if (weight->bits < 1 || weight->bits > 4) return "tables have codes of 1 to 4 bits";
  if (weight->group < 1) return "a group has no columns";
  const auto few = [&](auto bits) {
    return multiply_few_tokens(*call, LutWeight<decltype(bits)::value>(*weight, *call), stream);
  };
  if (call->tokens > kFew) return multiply_many_tokens(*call, LutWeight<0>(*weight, *call), stream);
  switch (weight->bits) {
    case 2:
      return few(Bits<2>{});
    case 3:
      return few(Bits<3>{});
    case 4:
      return few(Bits<4>{});
    default:
      return few(Bits<0>{});
  }
}
