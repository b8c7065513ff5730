// Vectors of 16 bytes for matmul_int_source.h: a quarter of the rows of a block. The files that
// include it give `Vector` its products. No standard library templates here: they would be compiled
// for a CPU that has more than the baseline.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace onnxq {

struct VectorNeon {
  static constexpr int kLanes = 4, kTile = 8;
  using Codes = uint8x16_t;
  using Sums = int32x4_t;
  using Floats = float32x4_t;
  struct Short {};
  template <int>
  static constexpr int kShort = 1;

  static Codes load(const uint8_t* from) { return vld1q_u8(from); }
  // Bits of each byte, moved from kFrom to kTo; the mask says which are kept there.
  template <int kFrom, int kTo, int kMask>
  static Codes bits(Codes plane) {
    if constexpr (kFrom > kTo) plane = vshrq_n_u8(plane, kFrom - kTo);
    if constexpr (kFrom < kTo) plane = vshlq_n_u8(plane, kTo - kFrom);
    return vandq_u8(plane, vdupq_n_u8(kMask));
  }
  template <int kFrom, int kTo, int kMask>
  static Codes with_bits(Codes codes, Codes plane) {
    return vorrq_u8(codes, bits<kFrom, kTo, kMask>(plane));
  }
  template <int kBits>
  static void prefetch(const uint8_t* unit) {
    for (int line = 0; line < kBits; ++line) __builtin_prefetch(unit + 1024 + 64 * line);
  }
  // Four bytes of a token, for all rows.
  static int8x16_t token(const int8_t* four) {
    int32_t word;
    __builtin_memcpy(&word, four, sizeof(word));
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
  }

  static Sums no_sums() { return vdupq_n_s32(0); }
  static Sums all(int32_t value) { return vdupq_n_s32(value); }
  static Sums add(Sums a, Sums b) { return vaddq_s32(a, b); }
  static Sums subtract(Sums a, Sums b) { return vsubq_s32(a, b); }
  static Sums multiply(Sums a, Sums b) { return vmulq_s32(a, b); }
  static Sums widen(const uint8_t* from) {
    uint32_t word;
    __builtin_memcpy(&word, from, sizeof(word));
    const uint16x8_t pairs = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(word)));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(pairs)));
  }
  static int32_t reduce(Sums a) { return vaddvq_s32(a); }

  static Floats no_floats() { return vdupq_n_f32(0.0f); }
  static Floats load_floats(const float* from) { return vld1q_f32(from); }
  static Floats load_first(const float* from, int64_t count) {
    float some[kLanes] = {};
    for (int64_t at = 0; at < count && at < kLanes; ++at) some[at] = from[at];
    return vld1q_f32(some);
  }
  static Floats floats(Sums a) { return vcvtq_f32_s32(a); }
  static Floats multiply(Floats a, Floats b) { return vmulq_f32(a, b); }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static void store(float* to, Floats a) { vst1q_f32(to, a); }

  static Sums rounded(Floats a, float inverse) { return vcvtnq_s32_f32(vmulq_n_f32(a, inverse)); }
  static void store_bytes(int8_t* to, Sums a) {
    const int16x4_t words = vqmovn_s32(a);
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
    const int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
    __builtin_memcpy(to, &four, sizeof(four));
  }
  // max |a|, as integers: NaN is larger than infinity.
  static float largest(const float* a, int64_t count) {
    const int32x4_t magnitude = vdupq_n_s32(0x7fffffff);
    int32x4_t most = vdupq_n_s32(0);
    for (int64_t at = 0; at < count; at += kLanes) {
      const Floats some =
          count - at < kLanes ? load_first(a + at, count - at) : load_floats(a + at);
      most = vmaxq_s32(most, vandq_s32(vreinterpretq_s32_f32(some), magnitude));
    }
    const int32_t bits = vmaxvq_s32(most);
    float value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
  }
};

}  // namespace onnxq
