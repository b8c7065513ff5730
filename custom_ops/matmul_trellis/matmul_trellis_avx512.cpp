#ifdef __AVX512BW__
#include "trellis_vector512.h"

namespace {

struct Vector : onnxq::TrellisVector512 {
  static constexpr int32_t kByteBias = 0;

  template <int kBits>
  static Words join(Words low, Words high) {
    return either(shift_right<kBits>(low), shift_left<32 - kBits>(high));
  }
  static Words pair_sums(Words pairs) { return _mm512_madd_epi16(pairs, all16(1)); }
  static Words byte_sums(Words bytes, int32_t added) {
    return add(pair_sums(_mm512_maddubs_epi16(bytes, _mm512_set1_epi8(1))), all(added));
  }
  static Words add_pairs(Words sums, Words pairs, Words q) {
    return add(sums, _mm512_madd_epi16(pairs, q));
  }
  static int32_t spread_byte(int8_t q) { return onnxq::both_halves(q); }
  static Words add_bytes(Words sums, Words bytes, Words q) {
    return add_pairs(sums, _mm512_maddubs_epi16(bytes, _mm512_set1_epi8(1)), q);
  }
  static Words even(Words bytes) { return _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8); }
  static Words odd(Words bytes) { return _mm512_srai_epi16(bytes, 8); }
  static Words add_fours(Words sums, Words bytes, Words q) {
    return add_pairs(add_pairs(sums, even(bytes), even(q)), odd(bytes), odd(q));
  }
  // The states that begin at bits 0 and kBits of each lane.
  template <int kBits>
  static Words two(Words bits) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, bits, _mm512_slli_epi32(bits, 16 - kBits));
  }
  template <int kAt>
  static Words byte(Words bytes) {
    return _mm512_srai_epi32(_mm512_slli_epi32(bytes, 24 - 8 * kAt), 24);
  }

  struct Table {
    Words part[4];  // 16 magnitudes

    explicit Table(const int8_t* magnitudes) {
      for (int at = 0; at < 4; ++at) {
        part[at] = _mm512_maskz_broadcast_i32x4(
            0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(magnitudes + 16 * at)));
      }
    }
    Words look_up(Words mixed) const {
      const Words place = both(mixed, _mm512_set1_epi8(0x0f));
      const __mmask64 odd = _mm512_movepi8_mask(_mm512_slli_epi16(mixed, 3));
      const __mmask64 upper = _mm512_movepi8_mask(_mm512_slli_epi16(mixed, 2));
      const __mmask64 minus = _mm512_movepi8_mask(_mm512_slli_epi16(mixed, 1));
      const auto half = [&](int at) {
        return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(part[at], place), odd, part[at + 1],
                                        place);
      };
      const Words size = _mm512_mask_blend_epi8(upper, half(0), half(2));
      return _mm512_mask_sub_epi8(size, minus, _mm512_setzero_si512(), size);
    }
  };
};

}  // namespace

#include "matmul_trellis_source.h"

namespace onnxq {

const TrellisKernels* trellis_kernels_avx512() {
  static constexpr TrellisKernels kernels = {"avx512", multiply, multiply_float};
  return &kernels;
}

}  // namespace onnxq

#else
#include "matmul_trellis.h"

namespace onnxq {
const TrellisKernels* trellis_kernels_avx512() { return nullptr; }
}  // namespace onnxq
#endif
