#include "../matmul/matmul_cuda_kernels.h"
#include "matmul_trellis_decode.h"

const char* onnxq_matmul_trellis_cuda(const onnxq_matmul* call, const onnxq_trellis* weight,
                                      void* stream) {
  using namespace onnxq::cuda;
  if (weight->code < 0 || weight->code > 1) return "the code of a trellis is 0 (1mad) or 1 (3inst)";
  if (weight->step_bits < 1 || weight->step_bits > 4) return "a trellis has 1 to 4 bits per weight";
  if (weight->state_bits < weight->step_bits || weight->state_bits > 16) {
    return "states of a trellis have up to 16 bits, and no fewer than a step";
  }
  if (call->columns % TrellisWeight<TrellisCode::k1Mad>::kTile != 0) {
    return "columns must be a multiple of 16";
  }
  const auto multiply = [&](auto code) {
    const TrellisWeight<static_cast<TrellisCode>(decltype(code)::value)> decoded(*weight, *call);
    return call->tokens > kFew ? multiply_many_tokens(*call, decoded, stream)
                               : multiply_few_tokens(*call, decoded, stream);
  };
  return weight->code == 0 ? multiply(Bits<0>{}) : multiply(Bits<1>{});
}
