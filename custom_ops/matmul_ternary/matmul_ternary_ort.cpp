// The operator MatMulTernary for ONNX Runtime: rows are split over the threads of the session.
#include "../ort/ops.h"
#include "ternary_weights.h"

namespace onnxq::ort {

std::vector<const CustomOp*> matmul_ternary_ops(const Api* api) {
  std::vector<const CustomOp*> ops = matmul_ops<TernaryWeights<ElementType::kFloat>>(api);
  for (const CustomOp* op : matmul_ops<TernaryWeights<ElementType::kFloat16>>(api))
    ops.push_back(op);
  return ops;
}

}  // namespace onnxq::ort
