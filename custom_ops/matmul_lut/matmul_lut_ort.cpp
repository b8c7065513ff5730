// The operator MatMulLut for ONNX Runtime: rows are split over the threads of the session.
#include "../ort/ops.h"
#include "lut_weights.h"

namespace onnxq::ort {

std::vector<const CustomOp*> matmul_lut_ops(const Api* api) {
  std::vector<const CustomOp*> ops = matmul_ops<LutWeights<ElementType::kInt8>>(api);
  for (const CustomOp* op : matmul_ops<LutWeights<ElementType::kFloat16>>(api)) ops.push_back(op);
  return ops;
}

}  // namespace onnxq::ort
