#ifdef __AVX512VNNI__
#include "trellis_vector512.h"

namespace {

struct Vector : onnxq::TrellisVector512 {
  static constexpr int32_t kByteBias = 128;

  template <int kBits>
  static Words join(Words low, Words high) {
    return _mm512_shrdi_epi32(low, high, kBits);
  }
  // Four bytes times the same number.
  static int32_t spread_byte(int8_t q) {
    return static_cast<int32_t>(static_cast<uint8_t>(q) * 0x01010101u);
  }
  static Words add_bytes(Words sums, Words bytes, Words q) {
    return _mm512_dpbusd_epi32(sums, bytes, q);
  }
  static Words byte_sums(Words bytes, int32_t added) {
    return _mm512_dpbusd_epi32(all(added), bytes, _mm512_set1_epi8(1));
  }
  static Words pair_sums(Words pairs) {
    return _mm512_dpwssd_epi32(_mm512_setzero_si512(), pairs, all16(1));
  }
  static Words add_pairs(Words sums, Words pairs, Words q) {
    return _mm512_dpwssd_epi32(sums, pairs, q);
  }
  static Words add_fours(Words sums, Words bytes, Words q) {
    return _mm512_dpbusd_epi32(sums, bytes, q);
  }
  // The states that begin at bits 0 and kBits of each lane.
  template <int kBits>
  static Words two(Words bits) {
    constexpr int64_t kHalf = kBits << 16 | (kBits + 8) << 24 | 8 << 8;
    return _mm512_multishift_epi64_epi8(_mm512_set1_epi64((kHalf + 0x20202020) << 32 | kHalf),
                                        bits);
  }
  template <int kAt>
  static Words byte(Words bytes) {
    const Words moved = _mm512_srli_epi32(bytes, 8 * kAt);
    return _mm512_sub_epi32(both(moved, all(0xff)), all(kByteBias));
  }

  struct Table {
    Words positive, negative;

    explicit Table(const int8_t* magnitudes) {
      const Words bias = _mm512_set1_epi8(-128), sizes = _mm512_loadu_si512(magnitudes);
      positive = _mm512_add_epi8(bias, sizes);
      negative = _mm512_sub_epi8(bias, sizes);
    }
    Words look_up(Words mixed) const { return _mm512_permutex2var_epi8(positive, mixed, negative); }
  };
};

}  // namespace

#include "matmul_trellis_source.h"

namespace onnxq {

const TrellisKernels* trellis_kernels_vnni() {
  static constexpr TrellisKernels kernels = {"vnni", multiply, multiply_float};
  return &kernels;
}

}  // namespace onnxq

#else
#include "matmul_trellis.h"

namespace onnxq {
const TrellisKernels* trellis_kernels_vnni() { return nullptr; }
}  // namespace onnxq
#endif
