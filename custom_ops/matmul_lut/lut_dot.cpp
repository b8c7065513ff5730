// NEON with products of four bytes. `tbl` looks up 16 codes at once in a table of 16 entries, which
// is just what a table has.
#include "lut.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

namespace onnxq {
namespace {

constexpr int kOffset = 0;

using Floats = float32x4_t;
constexpr int kFloats = 4, kAbreast = 4;
inline Floats zero() { return vdupq_n_f32(0.0f); }
inline Floats spread(float value) { return vdupq_n_f32(value); }
inline Floats load(const float* from) { return vld1q_f32(from); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
inline float total(Floats value) { return vaddvq_f32(value); }

using Sums = int32x4_t;
inline Sums dot(const uint8_t* w, const int8_t* a, int64_t columns) {
  Sums sum = vdupq_n_s32(0);
  for (int64_t column = 0; column < columns; column += 16) {
    sum = vdotq_s32(sum, vreinterpretq_s8_u8(vld1q_u8(w + column)), vld1q_s8(a + column));
  }
  return sum;
}
inline Floats to_floats(Sums sum) { return vcvtq_f32_s32(sum); }

// 16 codes of a unit, from `lines` on. Shifts by a negative number go right.
inline uint8x16_t codes_of(const uint8_t* lines, int bits, int64_t inside) {
  const uint8x16_t mask = vdupq_n_u8(static_cast<uint8_t>((1 << bits) - 1));
  uint8x16_t line = vld1q_u8(lines);
  int shift = static_cast<int>(inside * bits);
  if (bits == 3 && inside < 6) {
    line = vld1q_u8(lines + inside / 2 * kUnit);
    shift = static_cast<int>(inside % 2 * bits);
  } else if (bits == 3) {
    line = vshrq_n_u8(line, 6);
    line = vorrq_u8(line, vshlq_n_u8(vshrq_n_u8(vld1q_u8(lines + kUnit), 6), 2));
    line = vorrq_u8(line, vshlq_n_u8(vshrq_n_u8(vld1q_u8(lines + 2 * kUnit), 6), 4));
    shift = static_cast<int>((inside - 6) * bits);
  }
  return vandq_u8(vshlq_u8(line, vdupq_n_s8(static_cast<int8_t>(-shift))), mask);
}
inline void look_up(const uint8_t* entries, const uint8_t* lines, LutLayout layout, int64_t inside,
                    uint8_t* out) {
  const uint8x16_t table = vld1q_u8(entries);
  for (int64_t lane = 0; lane < kUnit; lane += 16) {
    vst1q_u8(out + lane, vqtbl1q_u8(table, codes_of(lines + lane, layout.bits, inside)));
  }
}

// A number picks four bytes of the table: those of entry n begin at 4 n.
inline void expand_run(const float* table, float scale, const uint8_t* numbers, int64_t count,
                       float* out) {
  uint8x16x4_t scaled;
  for (int part = 0; part < 4; ++part) {
    scaled.val[part] = vreinterpretq_u8_f32(vmulq_n_f32(load(table + 4 * part), scale));
  }
  const uint32x4_t within = vdupq_n_u32(0x03020100);
  for (int64_t index = 0; index < count; index += 8) {
    const uint16x8_t number = vmovl_u8(vld1_u8(numbers + index));
    const uint32x4_t low = vmovl_u16(vget_low_u16(number)), high = vmovl_u16(vget_high_u16(number));
    const uint32x4_t places[2] = {vmlaq_n_u32(within, low, 0x04040404),
                                  vmlaq_n_u32(within, high, 0x04040404)};
    for (int half = 0; half < 2; ++half) {
      const uint8x16_t entries = vqtbl4q_u8(scaled, vreinterpretq_u8_u32(places[half]));
      vst1q_f32(out + index + 4 * half, vreinterpretq_f32_u8(entries));
    }
  }
}

}  // namespace
}  // namespace onnxq

#include "lut_source.h"

namespace onnxq {

const LutKernels* lut_kernels_dot() {
  static constexpr LutKernels kernels = {"dot", kOffset, round_token, decode,
                                         tile,  nullptr, expand,      tile_float};
  return &kernels;
}

}  // namespace onnxq

#else

namespace onnxq {
const LutKernels* lut_kernels_dot() { return nullptr; }
}  // namespace onnxq
#endif
