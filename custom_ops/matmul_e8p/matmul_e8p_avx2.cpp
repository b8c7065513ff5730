#ifdef __AVX2__
#include <immintrin.h>

#include "matmul_e8p_source.h"

namespace onnxq {
namespace {

// Magnitudes times tokens that take the signs: sums of two products fit int16.
struct Whole {
  static constexpr int kRows = 4, kTokens = 2, kLanes = 32;
  static constexpr uint8_t kFlip = 0;
  static constexpr auto decode = e8p_decode;
  using Sums = __m256i;
  using Token = __m256i;
  struct Weight {
    __m256i number, magnitude;
  };

  static Sums none() { return _mm256_setzero_si256(); }
  static Weight weight(const uint8_t* from) {
    const __m256i number = _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
    return {number, _mm256_abs_epi8(number)};
  }
  static Token token(const int8_t* from) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
  }
  static Sums add(Sums sums, const Weight& weight, Token token) {
    const __m256i pairs =
        _mm256_maddubs_epi16(weight.magnitude, _mm256_sign_epi8(token, weight.number));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static void add_totals(const Sums* rows, int32_t* sums) {
    for (int row = 0; row < kRows; ++row) sums[row] += total(rows[row]);
  }
  static int32_t total(Sums sums) {
    const __m128i four =
        _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
  }
};

struct Single {
  static constexpr auto decode = e8p_decode;
  static constexpr int kRows = 4, kTokens = 2, kLanes = 8;
  using Sums = __m256;
  using Weight = __m256;
  using Token = __m256;

  static Sums none() { return _mm256_setzero_ps(); }
  static Weight weight(const float* from) { return _mm256_load_ps(from); }
  static Token token(const float* from) { return _mm256_load_ps(from); }
  static Sums add(Sums sums, Weight weight, Token token) {
    return _mm256_fmadd_ps(weight, token, sums);
  }
  static void add_totals(const Sums* rows, float* sums) {
    for (int row = 0; row < kRows; ++row) sums[row] += total(rows[row]);
  }
  static float total(Sums sums) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
};

void prepare(const E8pMatrix& w, const float* a, int64_t begin, int64_t end, uint8_t* prepared) {
  round_tokens(*int_kernels_avx2(), w, a, begin, end, prepared);
}

}  // namespace

const E8pKernels* e8p_kernels_avx2() {
  static constexpr E8pKernels kernels = {
      "avx2", {prepare, multiply<Rounded<Whole>>}, {copy_tokens, multiply<Plain<Single>>}};
  return &kernels;
}

}  // namespace onnxq

#else
#include "matmul_e8p.h"

namespace onnxq {
const E8pKernels* e8p_kernels_avx2() { return nullptr; }
}  // namespace onnxq
#endif
