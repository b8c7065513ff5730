// 32 numbers of 8 bits in a register of AVX2: what viterbi_avx2.cpp and viterbi_avx512.cpp share.
// Each includes it in code compiled for its own instruction set.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct Bytes256 {
  using Bytes = __m256i;
  static Bytes load_bytes(const uint8_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static void store_bytes(uint8_t* to, Bytes value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
  }
  static Bytes all_bytes(uint8_t value) { return _mm256_set1_epi8(static_cast<char>(value)); }
  static Bytes add_bytes(Bytes a, Bytes b) { return _mm256_add_epi8(a, b); }
  static Bytes subtract_bytes(Bytes a, Bytes b) { return _mm256_sub_epi8(a, b); }
  // Every byte 2^bits times over, 32 of them at a time.
  template <int kBits>
  static Bytes spread_bytes(const uint8_t* lanes, int part) {
    if constexpr (kBits >= 5) {
      return all_bytes(lanes[part >> (kBits - 5)]);
    } else {
      alignas(32) static constexpr uint8_t kCount[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10,
                                                         11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                                         22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
      const __m256i place = _mm256_and_si256(_mm256_srli_epi16(load_bytes(kCount), kBits),
                                             all_bytes(static_cast<uint8_t>(31 >> kBits)));
      return _mm256_shuffle_epi8(repeated<kBits>(lanes + (part << (5 - kBits))), place);
    }
  }
  // 32 / 2^bits bytes over and over; no more of them are read, since they were just written.
  template <int kBits>
  static Bytes repeated(const uint8_t* from) {
    if constexpr (kBits == 1) {
      return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    } else if constexpr (kBits == 2) {
      return _mm256_set1_epi64x(read<int64_t>(from));
    } else if constexpr (kBits == 3) {
      return _mm256_set1_epi32(read<int32_t>(from));
    } else {
      return _mm256_set1_epi16(read<int16_t>(from));
    }
  }
  template <class Number>
  static Number read(const uint8_t* from) {
    Number number;
    std::memcpy(&number, from, sizeof number);
    return number;
  }
};

}  // namespace
