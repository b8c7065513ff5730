// The baseline of the architecture, and the choice among the others.
#define ONNXQ_ISA "generic"
#include "e8p_nearest_source.h"

namespace onnxq {

const E8pNearest* e8p_nearest_generic() { return &kKernels; }

const E8pNearest& e8p_nearest() {
  static const E8pNearest* const chosen = [] {
    if (const E8pNearest* kernels = e8p_nearest_avx512()) return kernels;
    if (const E8pNearest* kernels = e8p_nearest_avx2()) return kernels;
    return e8p_nearest_generic();
  }();
  return *chosen;
}

}  // namespace onnxq
