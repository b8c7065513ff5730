#include "matmul_int.h"

namespace onnxq {
const IntKernels* int_kernels_amx() { return nullptr; }
}  // namespace onnxq
