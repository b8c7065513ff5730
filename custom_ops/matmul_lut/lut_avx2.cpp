// AVX2 and FMA. Products of int8 are those of |w| with a that has the sign of w: sums of two stay
// below 2^15.
#include "lut.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

namespace onnxq {
namespace {

constexpr int kOffset = 0;

using Floats = __m256;
constexpr int kFloats = 8, kAbreast = 2;
inline Floats zero() { return _mm256_setzero_ps(); }
inline Floats spread(float value) { return _mm256_set1_ps(value); }
inline Floats load(const float* from) { return _mm256_loadu_ps(from); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline float total(Floats value) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

using Sums = __m256i;
inline Sums bytes(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline Sums some_bytes(const void* from) {
  return _mm256_zextsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}
inline Sums products_of(__m256i w, __m256i a) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
inline Sums dot(const uint8_t* w, const int8_t* a, int64_t columns) {
  if (columns == 16) return products_of(some_bytes(w), some_bytes(a));
  const Sums first = products_of(bytes(w), bytes(a));
  if (columns == 32) return first;
  return _mm256_add_epi32(first, products_of(bytes(w + 32), bytes(a + 32)));
}
inline Floats to_floats(Sums sum) { return _mm256_cvtepi32_ps(sum); }

// Half a unit.
inline __m256i codes_of(const uint8_t* lines, int bits, int64_t inside) {
  const __m256i mask = _mm256_set1_epi8(static_cast<char>((1 << bits) - 1));
  __m256i line = bytes(lines);
  int shift = static_cast<int>(inside * bits);
  if (bits == 3 && inside < 6) {
    line = bytes(lines + inside / 2 * kUnit);
    shift = static_cast<int>(inside % 2 * bits);
  } else if (bits == 3) {
    const __m256i two = _mm256_set1_epi8(static_cast<char>(0xc0));
    const __m256i middle = _mm256_and_si256(bytes(lines + kUnit), two);
    const __m256i high = _mm256_and_si256(bytes(lines + 2 * kUnit), two);
    line = _mm256_srli_epi16(_mm256_and_si256(line, two), 6);
    line = _mm256_or_si256(line, _mm256_srli_epi16(middle, 4));
    line = _mm256_or_si256(line, _mm256_srli_epi16(high, 2));
    shift = static_cast<int>((inside - 6) * bits);
  }
  return _mm256_and_si256(_mm256_srli_epi16(line, shift), mask);
}
inline void look_up(const uint8_t* entries, const uint8_t* lines, LutLayout layout, int64_t inside,
                    uint8_t* out) {
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entries)));
  for (int64_t half = 0; half < kUnit; half += 32) {
    const __m256i codes = codes_of(lines + half, layout.bits, inside);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + half), _mm256_shuffle_epi8(table, codes));
  }
}

inline void expand_run(const float* table, float scale, const uint8_t* numbers, int64_t count,
                       float* out) {
  const __m256 low = _mm256_mul_ps(load(table), spread(scale));
  const __m256 high = _mm256_mul_ps(load(table + 8), spread(scale));
  for (int64_t index = 0; index < count; index += 8) {
    const __m256i number =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(numbers + index)));
    const __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(number, 28));
    const __m256 from_low = _mm256_permutevar8x32_ps(low, number);
    const __m256 from_high = _mm256_permutevar8x32_ps(high, number);
    _mm256_storeu_ps(out + index, _mm256_blendv_ps(from_low, from_high, is_high));
  }
}

}  // namespace
}  // namespace onnxq

#include "lut_source.h"

namespace onnxq {

const LutKernels* lut_kernels_avx2() {
  static constexpr LutKernels kernels = {"avx2", kOffset, round_token, decode,
                                         tile,   nullptr, expand,      tile_float};
  return &kernels;
}

}  // namespace onnxq

#else

namespace onnxq {
const LutKernels* lut_kernels_avx2() { return nullptr; }
}  // namespace onnxq
#endif
