#include "../matmul/matmul_cuda_kernels.h"
#include "matmul_trellis_decode.h"

const char* onnxq_matmul_trellis_cuda(const onnxq_matmul* call, const onnxq_trellis* weight,
                                      void* stream) {
  using namespace onnxq::cuda;
  if (weight->code < 0 || weight->code > 2) {
    return "the code of a trellis is 0 (1mad), 1 (3inst) or 2 (hyb)";
  }
  const int least = weight->code == 2 ? 3 : 1, most = weight->code == 2 ? 8 : 4;
  if (weight->step_bits < least || weight->step_bits > most) {
    return "a step of a trellis has 1 to 4 bits, and one of a pair 3 to 8";
  }
  if (weight->state_bits < weight->step_bits || weight->state_bits > 16) {
    return "states of a trellis have up to 16 bits, and no fewer than a step";
  }
  if (call->columns % 16 != 0) return "columns must be a multiple of 16";
  const auto multiply = [&](auto code) {
    const TrellisWeight<static_cast<onnxq::TrellisCode>(decltype(code)::value)> decoded(*weight,
                                                                                        *call);
    return call->tokens > kFew ? multiply_many_tokens(*call, decoded, stream)
                               : multiply_few_tokens(*call, decoded, stream);
  };
  switch (weight->code) {
    case 0:
      return multiply(Bits<0>{});
    case 1:
      return multiply(Bits<1>{});
    default:
      return multiply(Bits<2>{});
  }
}
