// NEON with products of four signed bytes (Cortex-A75 and later).
#include "matmul_int.h"

#ifdef __ARM_FEATURE_DOTPROD
#include "vector_neon.h"

namespace {

struct Vector : onnxq::VectorNeon {
  template <int kBits, bool, bool>
  [[gnu::always_inline]] static void dot(Sums& sums, Short&, Codes codes, const int8_t* four) {
    const int8x16_t token = VectorNeon::token(four);
    if constexpr (kBits == 8) {  // codes are unsigned: the eighth bit is worth 128, and not -128
      const Codes top = vandq_u8(codes, vdupq_n_u8(0x80));
      sums = vsubq_s32(sums, vdotq_s32(no_sums(), vreinterpretq_s8_u8(top), token));
      codes = vandq_u8(codes, vdupq_n_u8(0x7f));
    }
    sums = vdotq_s32(sums, vreinterpretq_s8_u8(codes), token);
  }
};

}  // namespace

#include "matmul_int_source.h"

namespace onnxq {

const IntKernels* int_kernels_dot() {
  static constexpr IntKernels kernels = {"dot", 1, prepare, multiply};
  return &kernels;
}

}  // namespace onnxq

#else

namespace onnxq {
const IntKernels* int_kernels_dot() { return nullptr; }
}  // namespace onnxq
#endif
