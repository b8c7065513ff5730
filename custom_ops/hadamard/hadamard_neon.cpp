// NEON, which every CPU of 64-bit ARM has: with fused multiply-add, and twice the registers of what
// the baseline is written for.
#include "hadamard.h"

#ifdef __aarch64__
#include <arm_neon.h>

#define ONNXQ_FUSED
#include "single.h"

namespace {

struct Wide {
  static constexpr int kWidth = 4, kRadix = 16, kOutputs = 4, kColumns = 4;
  using Vector = float32x4_t;
  static Vector load(const float* from) { return vld1q_f32(from); }
  static void store(float* to, Vector value) { vst1q_f32(to, value); }
  static Vector all(float value) { return vdupq_n_f32(value); }
  static Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
  static Vector subtract(Vector a, Vector b) { return vsubq_f32(a, b); }
  static Vector multiply(Vector a, Vector b) { return vmulq_f32(a, b); }
  static Vector multiply_add(Vector a, Vector b, Vector sum) { return vfmaq_f32(sum, a, b); }
  // v * sign + (v with halves exchanged): the product is exact, so this is one rounded sum.
  static Vector within(Vector v) {
    const Vector near = {1, -1, 1, -1}, half = {1, 1, -1, -1};
    v = vfmaq_f32(vrev64q_f32(v), v, near);
    return vfmaq_f32(vextq_f32(v, v, 2), v, half);
  }
};

void widen(const uint16_t* half, float* single, int64_t count) {
  for (; count >= 4; count -= 4, half += 4, single += 4) {
    vst1q_f32(single, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(half))));
  }
  for (int64_t index = 0; index < count; ++index) {
    const float16x4_t all = vreinterpret_f16_u16(vdup_n_u16(half[index]));
    single[index] = vgetq_lane_f32(vcvt_f32_f16(all), 0);
  }
}

void narrow(const float* single, uint16_t* half, int64_t count) {
  for (; count >= 4; count -= 4, half += 4, single += 4) {
    vst1_u16(half, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(single))));
  }
  for (int64_t index = 0; index < count; ++index) {
    const uint16x4_t all = vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(single[index])));
    half[index] = vget_lane_u16(all, 0);
  }
}

}  // namespace

#define ONNXQ_ISA "neon"
#include "hadamard_source.h"

const onnxq::HadamardKernels* onnxq::hadamard_kernels_neon() { return &kHadamardKernels; }
#else
const onnxq::HadamardKernels* onnxq::hadamard_kernels_neon() { return nullptr; }
#endif
