// NEON with products of four unsigned and signed bytes, which come with matrix products of int8.
#include "matmul_int.h"

#ifdef __ARM_FEATURE_MATMUL_INT8
#include "vector_neon.h"

namespace {

struct Vector : onnxq::VectorNeon {
  template <int, bool, bool>
  [[gnu::always_inline]] static void dot(Sums& sums, Short&, Codes codes, const int8_t* four) {
    sums = vusdotq_s32(sums, codes, VectorNeon::token(four));
  }
};

}  // namespace

#include "matmul_int_source.h"

namespace onnxq {

const IntKernels* int_kernels_i8mm() {
  static constexpr IntKernels kernels = {"i8mm", 1, prepare, multiply};
  return &kernels;
}

}  // namespace onnxq

#else

namespace onnxq {
const IntKernels* int_kernels_i8mm() { return nullptr; }
}  // namespace onnxq
#endif
