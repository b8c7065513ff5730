// Compiled with AVX-512 F, BW, DQ and VL where the compiler has them; asked for only where the
// CPU does.
#include "viterbi_kernels.h"

#ifdef __AVX512BW__
#include <immintrin.h>

#include "viterbi_bytes256.h"

namespace {

struct Wide : Bytes256 {
  using Vector = __m512i;
  static Vector load(const void* from) { return _mm512_loadu_si512(from); }
  static void store(uint16_t* to, Vector value) { _mm512_storeu_si512(to, value); }
  static Vector all(uint16_t value) { return _mm512_set1_epi16(static_cast<int16_t>(value)); }
  static Vector min(Vector a, Vector b) { return _mm512_min_epu16(a, b); }
  static uint32_t less(Vector a, Vector b) { return _mm512_cmplt_epu16_mask(a, b); }
  static Vector add(Vector a, Vector b) { return _mm512_adds_epu16(a, b); }
  static Vector subtract(Vector a, Vector b) { return _mm512_subs_epu16(a, b); }
  template <int kDoublings>
  static Vector square(Vector value, Vector target) {
    Vector apart = _mm512_subs_epi16(value, target);
    for (int time = 0; time < kDoublings; ++time) apart = _mm512_adds_epi16(apart, apart);
    return _mm512_mulhrs_epi16(apart, apart);
  }
  // Signed numbers: saturating sums and differences, and a b / 2^15.
  static Vector add_signed(Vector a, Vector b) { return _mm512_adds_epi16(a, b); }
  static Vector subtract_signed(Vector a, Vector b) { return _mm512_subs_epi16(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mulhrs_epi16(a, b); }
  static Bytes select(uint32_t mask, Bytes yes, Bytes no) {
    return _mm256_mask_blend_epi8(mask, no, yes);
  }
  // Signed bytes times a number.
  static Vector times(Bytes value, int16_t number) {
    return _mm512_mullo_epi16(_mm512_cvtepi8_epi16(value), _mm512_set1_epi16(number));
  }
  static uint16_t lowest(Vector value) {
    alignas(64) uint16_t lanes[32];
    _mm512_store_si512(lanes, value);
    uint16_t least = lanes[0];
    for (uint16_t lane : lanes) least = lane < least ? lane : least;
    return least;
  }
  // Every lane 2^bits times over, 32 of them at a time.
  struct Spread {
    Vector all;
    Spread() = default;
    explicit Spread(Vector value) : all(value) {}
    template <int kBits>
    Vector part(int part) const {
      alignas(64) static constexpr uint16_t kCount[32] = {
          0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
          16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
      constexpr int kPer = kBits < 5 ? 5 - kBits : 0, kParts = kBits < 5 ? 0 : kBits - 5;
      const Vector place = _mm512_srli_epi16(_mm512_load_si512(kCount), kBits);
      const int first = kBits < 5 ? part << kPer : part >> kParts;
      return _mm512_permutexvar_epi16(
          _mm512_add_epi16(place, _mm512_set1_epi16(static_cast<int16_t>(first))), all);
    }
  };
};

}  // namespace

#define ONNXQ_ISA "avx512"
#include "viterbi_source.h"

const onnxq::ViterbiKernels* onnxq::viterbi_kernels_avx512() {
  const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return has ? &kViterbiKernels : nullptr;
}
#else
const onnxq::ViterbiKernels* onnxq::viterbi_kernels_avx512() { return nullptr; }
#endif
