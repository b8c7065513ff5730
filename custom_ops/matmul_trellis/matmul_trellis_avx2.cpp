#ifdef __AVX2__
#include <immintrin.h>

#include <cstdint>

#include "trellis_codes.h"

namespace {

// Rows 0 to 7 and 8 to 15 of a tile.
struct Vector {
  static constexpr int kTile = 4;
  static constexpr int32_t kByteBias = 0;
  struct Words {
    __m256i low, high;
  };
  struct Floats {
    __m256 low, high;
  };
  template <class Work>
  [[gnu::always_inline]] static Words each(Words a, const Work& work) {
    return {work(a.low), work(a.high)};
  }
  template <class Work>
  [[gnu::always_inline]] static Words each(Words a, Words b, const Work& work) {
    return {work(a.low, b.low), work(a.high, b.high)};
  }

  static Words load(const uint8_t* from) {
    const __m256i* at = reinterpret_cast<const __m256i*>(from);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
  }
  static Words load16(const uint8_t* from) {
    const __m128i* at = reinterpret_cast<const __m128i*>(from);
    return {_mm256_cvtepu16_epi32(_mm_loadu_si128(at)),
            _mm256_cvtepu16_epi32(_mm_loadu_si128(at + 1))};
  }
  static Words load8(const uint8_t* from) {
    const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_srli_si128(all, 8))};
  }
  static void store(uint8_t* to, Words words) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32), words.high);
  }
  static void prefetch(const uint8_t* tile) {
    _mm_prefetch(reinterpret_cast<const char*>(tile) + 2048, _MM_HINT_T0);
  }

  static Words all(int32_t value) {
    const __m256i same = _mm256_set1_epi32(value);
    return {same, same};
  }
  static Words all16(int16_t value) {
    const __m256i same = _mm256_set1_epi16(value);
    return {same, same};
  }
  static Words next(Words words) {
    const __m256i turn = _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0);
    const __m256i low = _mm256_permutevar8x32_epi32(words.low, turn);
    const __m256i high = _mm256_permutevar8x32_epi32(words.high, turn);
    return {_mm256_blend_epi32(low, high, 0x80), _mm256_blend_epi32(high, low, 0x80)};
  }
  template <int kBits>
  static Words shift_right(Words words) {
    return each(words, [](__m256i a) { return _mm256_srli_epi32(a, kBits); });
  }
  template <int kBits>
  static Words shift_left(Words words) {
    return each(words, [](__m256i a) { return _mm256_slli_epi32(a, kBits); });
  }
  template <int kBits>
  static Words join(Words low, Words high) {
    return either(shift_right<kBits>(low), shift_left<32 - kBits>(high));
  }
  static Words either(Words a, Words b) {
    return each(a, b, [](__m256i x, __m256i y) { return _mm256_or_si256(x, y); });
  }
  static Words both(Words a, Words b) {
    return each(a, b, [](__m256i x, __m256i y) { return _mm256_and_si256(x, y); });
  }
  static Words add(Words a, Words b) {
    return each(a, b, [](__m256i x, __m256i y) { return _mm256_add_epi32(x, y); });
  }
  static Words times(Words a, int32_t factor) {
    return each(a, all(factor), [](__m256i x, __m256i y) { return _mm256_mullo_epi32(x, y); });
  }
  static Words choose(Words words, Words mask, int32_t ones) {
    return either(both(words, mask), all(ones));
  }

  static Words pair(Words first, Words second) {
    return each(first, shift_left<16>(second),
                [](__m256i x, __m256i y) { return _mm256_blend_epi16(x, y, 0xaa); });
  }
  static Words low_half(Words pairs) {
    return each(pairs, [](__m256i x) { return _mm256_srai_epi32(_mm256_slli_epi32(x, 16), 16); });
  }
  static Words high_half(Words pairs) {
    return each(pairs, [](__m256i x) { return _mm256_srai_epi32(x, 16); });
  }
  // Two float16 numbers as whole numbers of 2^-13.
  static Words halves(Words mixed) {
    return each(mixed, [](__m256i x) {
      const __m256i mask = _mm256_set1_epi16(static_cast<int16_t>(onnxq::kThreeInstMask));
      const __m256i bits =
          _mm256_xor_si256(_mm256_and_si256(x, mask), _mm256_set1_epi16(onnxq::kThreeInstFlip));
      const __m256i mantissa = _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi16(0x3ff)),
                                               _mm256_set1_epi16(0x400));
      // 2^exponent from a table of bytes; an index of 128 and more gives 0.
      const __m256i exponent = _mm256_and_si256(_mm256_srli_epi16(bits, 10), _mm256_set1_epi16(3));
      const __m256i place =
          _mm256_or_si256(exponent, _mm256_set1_epi16(static_cast<int16_t>(0x8000)));
      const __m256i powers = _mm256_set1_epi32(0x08040201);
      const __m256i size = _mm256_mullo_epi16(mantissa, _mm256_shuffle_epi8(powers, place));
      return _mm256_sign_epi16(size, _mm256_or_si256(bits, _mm256_set1_epi16(1)));
    });
  }
  static Words pair_sums(Words pairs) {
    return each(pairs, all16(1), [](__m256i x, __m256i y) { return _mm256_madd_epi16(x, y); });
  }
  static Words byte_pairs(Words bytes) {
    return each(bytes, [](__m256i x) { return _mm256_maddubs_epi16(x, _mm256_set1_epi8(1)); });
  }
  static Words byte_sums(Words bytes, int32_t added) {
    return add(pair_sums(byte_pairs(bytes)), all(added));
  }
  static Words add_pairs(Words sums, Words pairs, Words q) {
    return add(sums, each(pairs, q, [](__m256i x, __m256i y) { return _mm256_madd_epi16(x, y); }));
  }
  static int32_t spread_byte(int8_t q) { return onnxq::both_halves(q); }
  static Words add_bytes(Words sums, Words bytes, Words q) {
    return add_pairs(sums, byte_pairs(bytes), q);
  }
  static Words even(Words bytes) {
    return each(bytes, [](__m256i x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); });
  }
  static Words odd(Words bytes) {
    return each(bytes, [](__m256i x) { return _mm256_srai_epi16(x, 8); });
  }
  static Words add_fours(Words sums, Words bytes, Words q) {
    return add_pairs(add_pairs(sums, even(bytes), even(q)), odd(bytes), odd(q));
  }
  template <int kBits>
  static Words two(Words bits) {
    return each(bits, shift_left<16 - kBits>(bits),
                [](__m256i x, __m256i y) { return _mm256_blend_epi16(x, y, 0xaa); });
  }
  // Upper half of the product of each 16 bits with 32.
  static Words upper(Words states, uint32_t factor) {
    return each(states, [factor](__m256i x) {
      const __m256i low = _mm256_set1_epi16(static_cast<int16_t>(factor));
      const __m256i high = _mm256_set1_epi16(static_cast<int16_t>(factor >> 16));
      return _mm256_add_epi16(_mm256_mulhi_epu16(x, low), _mm256_mullo_epi16(x, high));
    });
  }
  template <int kAt>
  static Words byte(Words bytes) {
    return each(
        bytes, [](__m256i x) { return _mm256_srai_epi32(_mm256_slli_epi32(x, 24 - 8 * kAt), 24); });
  }
  static void widen(const int8_t* from, int64_t count, int8_t* to) {
    for (int64_t at = 0; at < count; at += 16) {
      const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * at), _mm256_cvtepi8_epi16(some));
    }
  }

  struct Table {
    __m256i part[4];  // 16 magnitudes

    explicit Table(const int8_t* magnitudes) {
      for (int at = 0; at < 4; ++at) {
        part[at] = _mm256_broadcastsi128_si256(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(magnitudes + 16 * at)));
      }
    }
    Words look_up(Words mixed) const {
      return each(mixed, [this](__m256i x) {
        const __m256i place = _mm256_and_si256(x, _mm256_set1_epi8(0x0f));
        const __m256i odd = _mm256_slli_epi16(x, 3), upper = _mm256_slli_epi16(x, 2);
        const auto half = [&](int at) {
          return _mm256_blendv_epi8(_mm256_shuffle_epi8(part[at], place),
                                    _mm256_shuffle_epi8(part[at + 1], place), odd);
        };
        const __m256i size = _mm256_blendv_epi8(half(0), half(2), upper);
        return _mm256_sign_epi8(size,
                                _mm256_or_si256(_mm256_slli_epi16(x, 1), _mm256_set1_epi8(1)));
      });
    }
  };

  static Floats no_floats() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Floats all_floats(float value) {
    const __m256 same = _mm256_set1_ps(value);
    return {same, same};
  }
  static Floats load_floats(const float* from) {
    return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
  }
  static void store_floats(float* to, Floats a) {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
  }
  static Floats floats(Words a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
  static Floats add_floats(Floats a, Floats b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  static Floats multiply(Floats a, Floats b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static Floats multiply_add(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
};

}  // namespace

#include "matmul_trellis_source.h"

namespace onnxq {

const TrellisKernels* trellis_kernels_avx2() {
  static constexpr TrellisKernels kernels = {"avx2", multiply, multiply_float};
  return &kernels;
}

}  // namespace onnxq

#else
#include "matmul_trellis.h"

namespace onnxq {
const TrellisKernels* trellis_kernels_avx2() { return nullptr; }
}  // namespace onnxq
#endif
