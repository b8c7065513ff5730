#ifdef __AVX512BW__
#include "e8p_vector512.h"
#include "matmul_e8p_source.h"

namespace onnxq {
namespace {

// Magnitudes times tokens that take the signs: sums of two products fit int16.
struct Whole {
  static constexpr int kRows = 8, kTokens = 2, kLanes = 64;
  static constexpr uint8_t kFlip = 0;
  static constexpr auto decode = e8p_decode;
  using Sums = __m512i;
  using Token = __m512i;
  struct Weight {
    __mmask64 minus;
    __m512i magnitude;
  };

  static Sums none() { return _mm512_setzero_si512(); }
  static Weight weight(const uint8_t* from) {
    const __m512i number = _mm512_load_si512(from);
    return {_mm512_movepi8_mask(number), _mm512_abs_epi8(number)};
  }
  static Token token(const int8_t* from) { return _mm512_load_si512(from); }
  static Sums add(Sums sums, const Weight& weight, Token token) {
    const __m512i turned = _mm512_mask_sub_epi8(token, weight.minus, _mm512_setzero_si512(), token);
    const __m512i pairs = _mm512_maddubs_epi16(weight.magnitude, turned);
    return _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
  static void add_totals(const Sums* rows, int32_t* sums) { add_totals512(rows, sums); }
};

struct Single : Single512 {
  static constexpr auto decode = e8p_decode;
};

void prepare(const E8pMatrix& w, const float* a, int64_t begin, int64_t end, uint8_t* prepared) {
  round_tokens(*int_kernels_avx512(), w, a, begin, end, prepared);
}

}  // namespace

const E8pKernels* e8p_kernels_avx512() {
  static constexpr E8pKernels kernels = {
      "avx512", {prepare, multiply<Rounded<Whole>>}, {copy_tokens, multiply<Plain<Single>>}};
  return &kernels;
}

}  // namespace onnxq

#else
#include "matmul_e8p.h"

namespace onnxq {
const E8pKernels* e8p_kernels_avx512() { return nullptr; }
}  // namespace onnxq
#endif
