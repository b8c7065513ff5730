#ifdef __AVX2__
#include <immintrin.h>

#include <cstdint>

namespace {

// Half of the rows of a block. Pairs of products are in int16, which hold those of several vectors
// where codes are short.
struct Vector {
  static constexpr int kLanes = 8, kTile = 4;
  using Codes = __m256i;
  using Sums = __m256i;
  using Floats = __m256;
  using Short = __m256i;
  // 2 * 127 * (largest code) * kShort is less than 2^15.
  template <int kBits>
  static constexpr int kShort = kBits <= 4   ? 8
                                : kBits == 5 ? 4
                                : kBits == 6 ? 2
                                             : 1;

  static Codes load(const uint8_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  // Bits of each byte, moved from kFrom to kTo; the mask says which are kept there.
  template <int kFrom, int kTo, int kMask>
  static Codes bits(Codes plane) {
    if constexpr (kFrom > kTo) plane = _mm256_srli_epi32(plane, kFrom - kTo);
    if constexpr (kFrom < kTo) plane = _mm256_slli_epi32(plane, kTo - kFrom);
    return _mm256_and_si256(plane, _mm256_set1_epi8(kMask));
  }
  template <int kFrom, int kTo, int kMask>
  static Codes with_bits(Codes codes, Codes plane) {
    return _mm256_or_si256(codes, bits<kFrom, kTo, kMask>(plane));
  }
  // Codes are read once, in order: fetched a little ahead of what the hardware does by itself.
  template <int kBits>
  static void prefetch(const uint8_t* unit) {
    for (int line = 0; line < kBits; ++line) {
      _mm_prefetch(reinterpret_cast<const char*>(unit) + 2048 + 64 * line, _MM_HINT_T0);
    }
  }

  template <int kBits, bool kFirst, bool kLast>
  [[gnu::always_inline]] static void dot(Sums& sums, Short& kept, Codes codes, const int8_t* four) {
    int32_t word;
    __builtin_memcpy(&word, four, sizeof(word));
    const __m256i token = _mm256_set1_epi32(word);
    if constexpr (kBits == 8) {  // 255 would be too much: seven bits, and the eighth
      const __m256i top = _mm256_set1_epi8(-128);
      dot<7, true, true>(sums, kept, _mm256_andnot_si256(top, codes), four);
      codes = _mm256_and_si256(top, codes);
    }
    const __m256i pairs = _mm256_maddubs_epi16(codes, token);
    kept = kFirst ? pairs : _mm256_add_epi16(kept, pairs);
    if (kLast) sums = add(sums, _mm256_madd_epi16(kept, _mm256_set1_epi16(1)));
  }

  static Sums no_sums() { return _mm256_setzero_si256(); }
  static Sums all(int32_t value) { return _mm256_set1_epi32(value); }
  static Sums add(Sums a, Sums b) { return _mm256_add_epi32(a, b); }
  static Sums subtract(Sums a, Sums b) { return _mm256_sub_epi32(a, b); }
  static Sums multiply(Sums a, Sums b) { return _mm256_mullo_epi32(a, b); }
  static Sums widen(const uint8_t* from) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  }
  static int32_t reduce(Sums a) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
  }

  static Floats no_floats() { return _mm256_setzero_ps(); }
  static Floats load_floats(const float* from) { return _mm256_loadu_ps(from); }
  static Floats load_first(const float* from, int64_t count) {
    alignas(32) float some[kLanes] = {};
    for (int64_t at = 0; at < count && at < kLanes; ++at) some[at] = from[at];
    return _mm256_load_ps(some);
  }
  static Floats floats(Sums a) { return _mm256_cvtepi32_ps(a); }
  static Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static void store(float* to, Floats a) { _mm256_storeu_ps(to, a); }

  static Sums rounded(Floats a, float inverse) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(a, _mm256_set1_ps(inverse)));
  }
  static void store_bytes(int8_t* to, Sums a) {
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
  }
  // max |a|, as integers: NaN is larger than infinity.
  static float largest(const float* a, int64_t count) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();
    for (int64_t at = 0; at < count; at += kLanes) {
      const Floats some =
          count - at < kLanes ? load_first(a + at, count - at) : load_floats(a + at);
      most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(some), magnitude));
    }
    alignas(32) int32_t lanes[kLanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), most);
    int32_t bits = 0;
    for (int32_t lane : lanes) bits = lane > bits ? lane : bits;
    float value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
  }
};

}  // namespace

#include "matmul_int_source.h"

namespace onnxq {

const IntKernels* int_kernels_avx2() {
  static constexpr IntKernels kernels = {"avx2", kIntTokens, prepare, multiply};
  return &kernels;
}

}  // namespace onnxq

#else
#include "matmul_int.h"

namespace onnxq {
const IntKernels* int_kernels_avx2() { return nullptr; }
}  // namespace onnxq
#endif
