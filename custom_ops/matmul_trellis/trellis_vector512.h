// Sixteen rows in one register, for matmul_trellis_avx512.cpp and matmul_trellis_vnni.cpp.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "trellis_codes.h"

namespace onnxq {
namespace {

struct TrellisVector512 {
  static constexpr int kTile = 8;
  using Words = __m512i;
  using Floats = __m512;

  static Words load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static Words load16(const uint8_t* from) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Words load8(const uint8_t* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static void store(uint8_t* to, Words words) { _mm512_storeu_si512(to, words); }
  static void prefetch(const uint8_t* tile) {
    _mm_prefetch(reinterpret_cast<const char*>(tile) + 2048, _MM_HINT_T0);
  }

  static Words all(int32_t value) { return _mm512_set1_epi32(value); }
  static Words all16(int16_t value) { return _mm512_set1_epi16(value); }
  static Words next(Words words) { return _mm512_alignr_epi32(words, words, 1); }
  template <int kBits>
  static Words shift_right(Words words) {
    return _mm512_srli_epi32(words, kBits);
  }
  template <int kBits>
  static Words shift_left(Words words) {
    return _mm512_slli_epi32(words, kBits);
  }
  static Words either(Words a, Words b) { return _mm512_or_si512(a, b); }
  static Words both(Words a, Words b) { return _mm512_and_si512(a, b); }
  static Words add(Words a, Words b) { return _mm512_add_epi32(a, b); }
  static Words times(Words a, int32_t factor) { return _mm512_mullo_epi32(a, all(factor)); }
  // (words & mask) | ones
  static Words choose(Words words, Words mask, int32_t ones) {
    return _mm512_ternarylogic_epi32(words, mask, all(ones), 0xea);
  }

  // Low halves of both, side by side.
  static Words pair(Words first, Words second) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, first, _mm512_slli_epi32(second, 16));
  }
  static Words low_half(Words pairs) { return _mm512_srai_epi32(_mm512_slli_epi32(pairs, 16), 16); }
  static Words high_half(Words pairs) { return _mm512_srai_epi32(pairs, 16); }

  // Two float16 numbers as whole numbers of 2^-13: the mantissa times a power of two with its sign,
  // which six bits, of which three do not matter, look up.
  static Words halves(Words mixed) {
    constexpr int64_t kPowers = kThreeInstFlip & 0x0800 ? 0x0002000100080004 : 0x0008000400020001;
    static_assert((kThreeInstFlip & 0x8400) == 0, "the flip is of the other bit of the exponent");
    const Words mantissa = _mm512_ternarylogic_epi32(mixed, all16(0x3ff),
                                                     all16((kThreeInstFlip & 0x3ff) | 0x400), 0x6a);
    const Words powers = _mm512_set1_epi64(kPowers);
    const Words signed_power = _mm512_permutex2var_epi16(
        powers, _mm512_srli_epi16(mixed, 10), _mm512_sub_epi16(_mm512_setzero_si512(), powers));
    return _mm512_mullo_epi16(mantissa, signed_power);
  }
  // Upper half of the product of each 16 bits with 32.
  static Words upper(Words states, uint32_t factor) {
    const Words low = all16(static_cast<int16_t>(factor));
    const Words high = all16(static_cast<int16_t>(factor >> 16));
    return _mm512_add_epi16(_mm512_mulhi_epu16(states, low), _mm512_mullo_epi16(states, high));
  }
  // `count` bytes, a multiple of 16, to 16 bits.
  static void widen(const int8_t* from, int64_t count, int8_t* to) {
    for (int64_t at = 0; at < count; at += 16) {
      const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * at), _mm256_cvtepi8_epi16(some));
    }
  }

  static Floats no_floats() { return _mm512_setzero_ps(); }
  static Floats all_floats(float value) { return _mm512_set1_ps(value); }
  static Floats load_floats(const float* from) { return _mm512_loadu_ps(from); }
  static void store_floats(float* to, Floats a) { _mm512_storeu_ps(to, a); }
  static Floats floats(Words a) { return _mm512_cvtepi32_ps(a); }
  static Floats add_floats(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace onnxq
