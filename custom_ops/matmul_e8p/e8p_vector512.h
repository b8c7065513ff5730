// Sums of 8 registers at once, and floats, for matmul_e8p_avx512.cpp and _vnni.cpp.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace onnxq {
namespace {

// The sums of all lanes of 8 registers.
inline __m256i totals512(const __m512i* sums) {
  __m256i half[8];
#pragma GCC unroll 8
  for (int row = 0; row < 8; ++row) {
    half[row] = _mm256_add_epi32(_mm512_castsi512_si256(sums[row]),
                                 _mm512_extracti64x4_epi64(sums[row], 1));
  }
  const __m256i low =
      _mm256_hadd_epi32(_mm256_hadd_epi32(half[0], half[1]), _mm256_hadd_epi32(half[2], half[3]));
  const __m256i high =
      _mm256_hadd_epi32(_mm256_hadd_epi32(half[4], half[5]), _mm256_hadd_epi32(half[6], half[7]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20),
                          _mm256_permute2x128_si256(low, high, 0x31));
}

inline void add_totals512(const __m512i* rows, int32_t* sums) {
  __m256i* const to = reinterpret_cast<__m256i*>(sums);
  _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), totals512(rows)));
}

struct Single512 {
  static constexpr int kRows = 8, kTokens = 3, kLanes = 16;
  using Sums = __m512;
  using Weight = __m512;
  using Token = __m512;

  static Sums none() { return _mm512_setzero_ps(); }
  static Weight weight(const float* from) { return _mm512_load_ps(from); }
  static Token token(const float* from) { return _mm512_load_ps(from); }
  static Sums add(Sums sums, Weight weight, Token token) {
    return _mm512_fmadd_ps(weight, token, sums);
  }
  static void add_totals(const Sums* rows, float* sums) {
    __m256 half[8];
#pragma GCC unroll 8
    for (int row = 0; row < 8; ++row) {
      half[row] =
          _mm256_add_ps(_mm512_castps512_ps256(rows[row]), _mm512_extractf32x8_ps(rows[row], 1));
    }
    const __m256 low =
        _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
    const __m256 high =
        _mm256_hadd_ps(_mm256_hadd_ps(half[4], half[5]), _mm256_hadd_ps(half[6], half[7]));
    const __m256 totals = _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                                        _mm256_permute2f128_ps(low, high, 0x31));
    _mm256_store_ps(sums, _mm256_add_ps(_mm256_load_ps(sums), totals));
  }
};

}  // namespace
}  // namespace onnxq
