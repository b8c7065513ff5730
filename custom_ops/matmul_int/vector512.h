// Sixteen rows of a block in one register, for matmul_int_avx512.cpp and matmul_int_vnni.cpp.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace onnxq {
namespace {

struct Vector512 {
  static constexpr int kLanes = 16;
  using Codes = __m512i;
  using Sums = __m512i;
  using Floats = __m512;

  static Codes load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  // Bits of each byte, moved from kFrom to kTo; the mask says which are kept there.
  template <int kFrom, int kTo>
  static Codes moved(Codes plane) {
    if constexpr (kFrom > kTo) return _mm512_srli_epi32(plane, kFrom - kTo);
    if constexpr (kFrom < kTo) return _mm512_slli_epi32(plane, kTo - kFrom);
    return plane;
  }
  template <int kFrom, int kTo, int kMask>
  static Codes bits(Codes plane) {
    return _mm512_and_si512(moved<kFrom, kTo>(plane), _mm512_set1_epi8(kMask));
  }
  template <int kFrom, int kTo, int kMask>
  static Codes with_bits(Codes codes, Codes plane) {
    constexpr int kOrAnd = 0xf8;  // a | (b & c)
    return _mm512_ternarylogic_epi32(codes, moved<kFrom, kTo>(plane), _mm512_set1_epi8(kMask),
                                     kOrAnd);
  }
  // Codes are read once, in order: fetched a little ahead of what the hardware does by itself.
  template <int kBits>
  static void prefetch(const uint8_t* unit) {
    for (int line = 0; line < kBits; ++line) {
      _mm_prefetch(reinterpret_cast<const char*>(unit) + kAhead + 64 * line, _MM_HINT_T0);
    }
  }

  static Sums no_sums() { return _mm512_setzero_si512(); }
  static Sums all(int32_t value) { return _mm512_set1_epi32(value); }
  static Sums add(Sums a, Sums b) { return _mm512_add_epi32(a, b); }
  static Sums subtract(Sums a, Sums b) { return _mm512_sub_epi32(a, b); }
  static Sums multiply(Sums a, Sums b) { return _mm512_mullo_epi32(a, b); }
  static Sums widen(const uint8_t* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static int32_t reduce(Sums a) { return _mm512_reduce_add_epi32(a); }

  static Floats no_floats() { return _mm512_setzero_ps(); }
  static Floats load_floats(const float* from) { return _mm512_loadu_ps(from); }
  static Floats load_first(const float* from, int64_t count) {
    if (count <= 0) return no_floats();
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>(count < 16 ? (1 << count) - 1 : -1), from);
  }
  static Floats floats(Sums a) { return _mm512_cvtepi32_ps(a); }
  static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static void store(float* to, Floats a) { _mm512_storeu_ps(to, a); }

  static Sums rounded(Floats a, float inverse) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(a, _mm512_set1_ps(inverse)));
  }
  static void store_bytes(int8_t* to, Sums a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(a));
  }
  // max |a|, as integers: NaN is larger than infinity.
  static float largest(const float* a, int64_t count) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i most = _mm512_setzero_si512();
    for (int64_t at = 0; at < count; at += 16) {
      const __m512i bits = _mm512_castps_si512(load_first(a + at, count - at));
      most = _mm512_max_epi32(most, _mm512_and_si512(bits, magnitude));
    }
    const int32_t bits = _mm512_reduce_max_epi32(most);
    float value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
  }

 private:
  static constexpr int kAhead = 2048;
};

}  // namespace
}  // namespace onnxq
