// The operator MatMulTrellis for ONNX Runtime: rows are split over the threads of the session.
#include "../ort/ops.h"
#include "trellis_weights.h"

namespace onnxq::ort {

std::vector<const CustomOp*> matmul_trellis_ops(const Api* api) {
  return matmul_ops<TrellisWeights>(api);
}

}  // namespace onnxq::ort
