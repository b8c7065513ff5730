#ifdef __AVX512BW__
#include "vector512.h"

namespace {

// Pairs of products in int16, which hold those of several vectors where codes are short.
struct Vector : onnxq::Vector512 {
  static constexpr int kTile = 8;
  using Short = __m512i;
  // 2 * 127 * (largest code) * kShort is less than 2^15.
  template <int kBits>
  static constexpr int kShort = kBits <= 4   ? 8
                                : kBits == 5 ? 4
                                : kBits == 6 ? 2
                                             : 1;

  template <int kBits, bool kFirst, bool kLast>
  [[gnu::always_inline]] static void dot(Sums& sums, Short& kept, Codes codes, const int8_t* four) {
    int32_t word;
    __builtin_memcpy(&word, four, sizeof(word));
    const __m512i token = _mm512_set1_epi32(word);
    if constexpr (kBits == 8) {  // 255 would be too much: seven bits, and the eighth
      const __m512i top = _mm512_set1_epi8(-128);
      dot<7, true, true>(sums, kept, _mm512_andnot_si512(top, codes), four);
      codes = _mm512_and_si512(top, codes);
    }
    const __m512i pairs = _mm512_maddubs_epi16(codes, token);
    kept = kFirst ? pairs : _mm512_add_epi16(kept, pairs);
    if (kLast) sums = add(sums, _mm512_madd_epi16(kept, _mm512_set1_epi16(1)));
  }
};

}  // namespace

#include "matmul_int_source.h"

namespace onnxq {

const IntKernels* int_kernels_avx512() {
  static constexpr IntKernels kernels = {"avx512", kIntTokens, prepare, multiply};
  return &kernels;
}

}  // namespace onnxq

#else
#include "matmul_int.h"

namespace onnxq {
const IntKernels* int_kernels_avx512() { return nullptr; }
}  // namespace onnxq
#endif
