// The operator MatMulCodebook for ONNX Runtime: rows are split over the threads of the session.
#include "../ort/ops.h"
#include "codebook_weights.h"

namespace onnxq::ort {

std::vector<const CustomOp*> matmul_codebook_ops(const Api* api) {
  return matmul_ops<CodebookWeights>(api);
}

}  // namespace onnxq::ort
