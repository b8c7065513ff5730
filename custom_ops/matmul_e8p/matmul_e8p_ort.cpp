// The operator MatMulE8P for ONNX Runtime: rows are split over the threads of the session.
#include "../ort/ops.h"
#include "e8p_weights.h"

namespace onnxq::ort {

std::vector<const CustomOp*> matmul_e8p_ops(const Api* api) { return matmul_ops<E8pWeights>(api); }

}  // namespace onnxq::ort
