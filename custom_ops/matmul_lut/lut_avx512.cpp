// AVX-512 F, BW, DQ and VL: products as those of AVX2, twice as wide.
#include "lut.h"

#if defined(__AVX512BW__) && defined(__FMA__)
#include "lut_vector512.h"

namespace onnxq {
namespace {

constexpr int kOffset = 0;

inline Sums dot(const uint8_t* w, const int8_t* a, int64_t columns) {
  const __mmask64 here = ~0ULL >> (kUnit - columns);
  const __m512i weight = _mm512_maskz_loadu_epi8(here, w);
  const __m512i x = _mm512_maskz_loadu_epi8(here, a);
  const __m512i turned =
      _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(weight), _mm512_setzero_si512(), x);
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(weight), turned);
  return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}

}  // namespace
}  // namespace onnxq

#include "lut_source.h"

namespace onnxq {

const LutKernels* lut_kernels_avx512() {
  static constexpr LutKernels kernels = {"avx512", kOffset, round_token, decode,
                                         tile,     nullptr, expand,      tile_float};
  return &kernels;
}

}  // namespace onnxq

#else

namespace onnxq {
const LutKernels* lut_kernels_avx512() { return nullptr; }
}  // namespace onnxq
#endif
