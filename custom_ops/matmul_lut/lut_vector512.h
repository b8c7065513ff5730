// Vectors of AVX-512 for lut_source.h, of lut_avx512.cpp and lut_vnni.cpp.
#pragma once

#include <immintrin.h>

#include "lut.h"

namespace onnxq {
namespace {

using Floats = __m512;
constexpr int kFloats = 16, kAbreast = 4;
inline Floats zero() { return _mm512_setzero_ps(); }
inline Floats spread(float value) { return _mm512_set1_ps(value); }
inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline float total(Floats value) {
  const __m256 half =
      _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_maskz_extractf32x8_ps(0xff, value, 1));
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

using Sums = __m512i;
inline Sums bytes(const void* from) { return _mm512_loadu_si512(from); }
inline Floats to_floats(Sums sum) { return _mm512_cvtepi32_ps(sum); }

// A table four times.
inline __m512i table_of(const uint8_t* entries) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entries)));
}

// Units 6 and 7 of a chunk of 3 bits, in the low six bits of bytes.
inline __m512i last_pair(const uint8_t* lines) {
  const __m512i low = _mm512_srli_epi16(bytes(lines), 6);
  const __m512i middle = _mm512_srli_epi16(bytes(lines + kUnit), 4);
  const __m512i high = _mm512_srli_epi16(bytes(lines + 2 * kUnit), 2);
  // 0xca takes its second where the first has ones, else its third.
  const __m512i four = _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x03), low, middle, 0xca);
  return _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x0f), four, high, 0xca);
}

inline void look_up(const uint8_t* entries, const uint8_t* lines, LutLayout layout, int64_t inside,
                    uint8_t* out) {
  const int bits = layout.bits;
  __m512i line;
  int64_t shift = inside * bits;
  if (bits == 3) {
    line = inside < 6 ? bytes(lines + inside / 2 * kUnit) : last_pair(lines);
    shift = inside % 2 * bits;
  } else {
    line = bytes(lines);
  }
  const __m512i codes = _mm512_and_si512(_mm512_srli_epi16(line, static_cast<unsigned>(shift)),
                                         _mm512_set1_epi8(static_cast<char>((1 << bits) - 1)));
  _mm512_storeu_si512(out, _mm512_shuffle_epi8(table_of(entries), codes));
}

inline void expand_run(const float* table, float scale, const uint8_t* numbers, int64_t count,
                       float* out) {
  const __m512 entries = _mm512_mul_ps(load(table), spread(scale));
  for (int64_t index = 0; index < count; index += kFloats) {
    const __m512i number =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(numbers + index)));
    _mm512_storeu_ps(out + index, _mm512_permutexvar_ps(number, entries));
  }
}

}  // namespace
}  // namespace onnxq
