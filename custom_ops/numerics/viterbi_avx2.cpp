// Compiled with AVX2 where the compiler has it; asked for only where the CPU does.
#include "viterbi_kernels.h"

#ifdef __AVX2__
#include <immintrin.h>

#include "viterbi_bytes256.h"

namespace {

struct Wide : Bytes256 {
  struct Vector {
    __m256i low, high;
  };
  static Vector load(const void* from) {
    const __m256i* at = static_cast<const __m256i*>(from);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
  }
  static void store(uint16_t* to, Vector value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 16), value.high);
  }
  static Vector all(uint16_t value) {
    const __m256i same = _mm256_set1_epi16(static_cast<int16_t>(value));
    return {same, same};
  }
  static Vector min(Vector a, Vector b) {
    return {_mm256_min_epu16(a.low, b.low), _mm256_min_epu16(a.high, b.high)};
  }
  static uint32_t less(Vector a, Vector b) {
    // a < b where the larger of the two is not a.
    const __m256i low = _mm256_cmpeq_epi16(_mm256_max_epu16(a.low, b.low), a.low);
    const __m256i high = _mm256_cmpeq_epi16(_mm256_max_epu16(a.high, b.high), a.high);
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xd8);
    return ~static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
  }
  static Vector add(Vector a, Vector b) {
    return {_mm256_adds_epu16(a.low, b.low), _mm256_adds_epu16(a.high, b.high)};
  }
  static Vector subtract(Vector a, Vector b) {
    return {_mm256_subs_epu16(a.low, b.low), _mm256_subs_epu16(a.high, b.high)};
  }
  template <int kDoublings>
  static Vector square(Vector value, Vector target) {
    return {square_half<kDoublings>(value.low, target.low),
            square_half<kDoublings>(value.high, target.high)};
  }
  // Signed numbers: saturating sums and differences, and a b / 2^15.
  static Vector add_signed(Vector a, Vector b) {
    return {_mm256_adds_epi16(a.low, b.low), _mm256_adds_epi16(a.high, b.high)};
  }
  static Vector subtract_signed(Vector a, Vector b) {
    return {_mm256_subs_epi16(a.low, b.low), _mm256_subs_epi16(a.high, b.high)};
  }
  static Vector multiply(Vector a, Vector b) {
    return {_mm256_mulhrs_epi16(a.low, b.low), _mm256_mulhrs_epi16(a.high, b.high)};
  }
  static Bytes select(uint32_t mask, Bytes yes, Bytes no) {
    const __m256i byte =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    const __m256i bits = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int32_t>(mask)), byte);
    const __m256i lanes = _mm256_cmpeq_epi8(_mm256_and_si256(bits, bit), bit);
    return _mm256_blendv_epi8(no, yes, lanes);
  }
  // Signed bytes times a number.
  static Vector times(Bytes value, int16_t number) {
    const __m256i same = _mm256_set1_epi16(number);
    const __m256i low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(value));
    const __m256i high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(value, 1));
    return {_mm256_mullo_epi16(low, same), _mm256_mullo_epi16(high, same)};
  }
  static uint16_t lowest(Vector value) {
    uint16_t lanes[32], least = 0xffff;
    store(lanes, value);
    for (uint16_t lane : lanes) least = lane < least ? lane : least;
    return least;
  }
  // Every lane 2^bits times over, 32 of them at a time.
  struct Spread {
    Vector all;
    uint16_t lanes[40];
    Spread() = default;
    explicit Spread(Vector value) : all(value) { store(lanes, value); }
    template <int kBits>
    Vector part(int part) const {
      return {half<kBits>(2 * part), half<kBits>(2 * part + 1)};
    }

   private:
    template <int kBits>
    __m256i half(int half) const {
      constexpr int kPer = kBits < 4 ? 4 - kBits : 0, kParts = kBits < 4 ? 0 : kBits - 4;
      const uint16_t* first = lanes + (kBits < 4 ? half << kPer : half >> kParts);
      if constexpr (kBits >= 4) return _mm256_set1_epi16(static_cast<int16_t>(*first));
      const __m256i few =
          _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(first)));
      const __m256i count = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      const __m256i place = _mm256_slli_epi16(_mm256_srli_epi16(count, kBits), 1);
      const __m256i bytes = _mm256_or_si256(_mm256_or_si256(place, _mm256_slli_epi16(place, 8)),
                                            _mm256_set1_epi16(0x100));
      return _mm256_shuffle_epi8(few, bytes);
    }
  };

 private:
  template <int kDoublings>
  static __m256i square_half(__m256i value, __m256i target) {
    __m256i apart = _mm256_subs_epi16(value, target);
    for (int time = 0; time < kDoublings; ++time) apart = _mm256_adds_epi16(apart, apart);
    return _mm256_mulhrs_epi16(apart, apart);
  }
};

}  // namespace

#define ONNXQ_ISA "avx2"
#include "viterbi_source.h"

const onnxq::ViterbiKernels* onnxq::viterbi_kernels_avx2() {
  return __builtin_cpu_supports("avx2") ? &kViterbiKernels : nullptr;
}
#else
const onnxq::ViterbiKernels* onnxq::viterbi_kernels_avx2() { return nullptr; }
#endif
