// One token times blocks of 8 rows, for matmul_e8p_vnni.cpp, without decoding to bytes: 512 weights
// take about 60 instructions.
//
// A sum over gain * (sign * magnitude + shift) * q comes apart. Magnitudes are 2 and 4 more at
// threes, by masks of bits that are looked up for 64 runs of 8 weights at once; signs, bits as
// well, go to the token. What there is once for a run is added for 64 runs at once: the shift,
// times the sum of 8 of the token, which is kept as 8 * coarse + fine; and the 4 more at a five,
// times the one q there.
#pragma once

#include <immintrin.h>

#include "e8p_lookup_vnni.h"
#include "e8p_vector512.h"

namespace onnxq {
namespace {

// Sums of runs of 8 codes of a token, as 8 * coarse + fine.
void sum_runs(const int8_t* q, int64_t units, uint8_t* coarse, uint8_t* fine) {
  for (int64_t unit = 0; unit < units; ++unit) {
    const __m512i fours = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1),
                                              _mm512_load_si512(q + unit * kE8pColumns));
    const __m512i sums = _mm512_add_epi32(fours, _mm512_srli_epi64(fours, 32));
    const __m512i eighths = _mm512_srai_epi32(_mm512_add_epi32(sums, _mm512_set1_epi32(4)), 3);
    const __m512i rest = _mm512_sub_epi32(sums, _mm512_slli_epi32(eighths, 3));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(coarse + 8 * unit), _mm512_cvtepi64_epi8(eighths));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(fine + 8 * unit), _mm512_cvtepi64_epi8(rest));
  }
}

// 64 codes of a token, and sums of its runs, the same 8 for each row.
struct SingleToken {
  __m512i q, coarse, fine;
};

// Sums of 8 rows, 64 columns wide, and what is added for runs: two lanes for a row.
struct SingleSums {
  __m512i first[kE8pRows], second[kE8pRows], runs;
};

inline __m512i negated(__m512i a, __mmask64 where) {
  return _mm512_mask_sub_epi8(a, where, _mm512_setzero_si512(), a);
}

// Masks of lanes of int32, two for each run that is chosen.
struct LaneMasks {
  explicit LaneMasks(__mmask64 runs) {
    const __m512i bytes = _mm512_movm_epi8(runs);
    even = _mm512_movepi8_mask(_mm512_unpacklo_epi8(bytes, bytes));
    odd = _mm512_movepi8_mask(_mm512_unpackhi_epi8(bytes, bytes));
  }
  __mmask16 operator[](int row) const {
    return static_cast<__mmask16>((row % 2 ? odd : even) >> (row / 2 * 16));
  }
  __mmask64 even, odd;
};

// q at one of the places of each run: bits [0, 3) of `places`.
inline __m512i token_at(__m512i q, __m512i places, __mmask64 where) {
  const __m512i runs = _mm512_set1_epi64(0x3830282018100800);
  constexpr int kAndOr = 0xea;  // (a & b) | c
  const __m512i at = _mm512_ternarylogic_epi32(places, _mm512_set1_epi8(7), runs, kAndOr);
  return _mm512_maskz_permutexvar_epi8(where, at, q);
}

// Codes of the lattice. With kGain 0 gains are 7 and 8: first is for all, second for the long ones.
template <int kGain>
[[gnu::always_inline]] inline void add_lattice(const uint8_t* codes, const LookupTables& tables,
                                               const SingleToken& token, __m512i* sums,
                                               __m512i* longer, __m512i& runs) {
  const LatticeRuns found(codes, tables, kGain == 0);
  __m512i gain = _mm512_set1_epi8(kGain), gain4 = _mm512_set1_epi8(4 * kGain),
          gain8 = _mm512_set1_epi8(8 * kGain);
  if constexpr (kGain == 0) {
    gain = _mm512_mask_blend_epi8(found.is_long, _mm512_set1_epi8(7), _mm512_set1_epi8(8));
    gain4 = _mm512_slli_epi16(gain, 2);
    gain8 = _mm512_slli_epi16(gain, 3);
  }
  runs = _mm512_dpbusd_epi32(runs, gain8, negated(token.coarse, ~found.is_up));
  runs = _mm512_dpbusd_epi32(runs, gain, negated(token.fine, ~found.is_up));
  const __m512i at_five = token_at(token.q, _mm512_srli_epi16(found.pattern, 3), found.has_five);
  runs = _mm512_dpbusd_epi32(runs, gain4,
                             negated(at_five, _mm512_test_epi8_mask(found.signs, found.fives)));
  const RowMasks minus(found.signs), three(found.threes);
  const LaneMasks lanes(found.is_long);
  const __m512i two = _mm512_set1_epi8(2), six = _mm512_set1_epi8(6);
#pragma GCC unroll 8
  for (int row = 0; row < kE8pRows; ++row) {
    const __m512i magnitude = _mm512_mask_blend_epi8(three[row], two, six);
    const __m512i turned = negated(token.q, minus[row]);
    sums[row] = _mm512_dpbusd_epi32(sums[row], magnitude, turned);
    if constexpr (kGain == 0) {
      longer[row] = _mm512_mask_dpbusd_epi32(longer[row], lanes[row], magnitude, turned);
    }
  }
}

// Codes of the one-bit book: those below 128 are signs of ones, the others two places.
[[gnu::always_inline]] inline void add_bits(const uint8_t* codes, const LookupTables& tables,
                                            const SingleToken& token, __m512i* sums,
                                            __m512i& runs) {
  const __m512i code = _mm512_load_si512(codes);
  const __mmask64 is_pair = _mm512_movepi8_mask(code);
  const __m512i pair = _mm512_permutex2var_epi8(tables.pairs[0], code, tables.pairs[1]);
  const __m512i two = _mm512_set1_epi8(2), one = _mm512_set1_epi8(1);
  const __m512i at_first = token_at(token.q, pair, is_pair);
  const __m512i at_second = token_at(token.q, _mm512_srli_epi16(pair, 3), is_pair);
  const __mmask64 is_first_minus = _mm512_test_epi8_mask(pair, _mm512_set1_epi8(64));
  runs = _mm512_dpbusd_epi32(runs, two, negated(at_first, is_first_minus));
  runs = _mm512_dpbusd_epi32(runs, two, negated(at_second, _mm512_movepi8_mask(pair)));
  constexpr int kOrAnd = 0xf8;  // a | (b & c)
  const __m512i parity = _mm512_slli_epi16(_mm512_popcnt_epi8(code), 7);
  const RowMasks minus(_mm512_ternarylogic_epi32(code, parity, _mm512_set1_epi8(-128), kOrAnd));
  const LaneMasks lanes(~is_pair);
#pragma GCC unroll 8
  for (int row = 0; row < kE8pRows; ++row) {
    sums[row] = _mm512_mask_dpbusd_epi32(sums[row], lanes[row], one, negated(token.q, minus[row]));
  }
}

// Sums of 8 rows from all parts, by the gains of both.
template <int kBits>
inline __m256i weighed(const SingleSums& sums) {
  __m256i first = totals512(sums.first), second = totals512(sums.second);
  if constexpr (kBits != 3) first = _mm256_mullo_epi32(first, _mm256_set1_epi32(7));
  if constexpr (kBits == 4) second = _mm256_slli_epi32(second, 1);
  const __m512i runs = _mm512_add_epi32(sums.runs, _mm512_srli_epi64(sums.runs, 32));
  return _mm256_add_epi32(_mm256_add_epi32(first, second), _mm512_cvtepi64_epi32(runs));
}

// One token, as it is prepared, times rows [begin, end).
template <int kBits>
void multiply_single(const E8pMatrix& w, const uint8_t* prepared, float* y, int64_t begin,
                     int64_t end) {
  constexpr int kAhead = 2048;
  const E8pToken layout(w);
  const LookupTables tables;
  const int8_t* q = layout.codes_of(prepared);
  const int64_t units = w.units();
  for (int64_t row = begin; row < end; row += kE8pRows) {
    const uint8_t* unit = w.codes + row / kE8pRows * w.block_bytes();
    SingleSums sums;
#pragma GCC unroll 8
    for (int at = 0; at < kE8pRows; ++at) {
      sums.first[at] = sums.second[at] = _mm512_setzero_si512();
    }
    sums.runs = _mm512_setzero_si512();
    for (int64_t at = 0; at < units; ++at, unit += w.unit_bytes()) {
      for (int plane = 0; plane < kBits; ++plane) {
        _mm_prefetch(reinterpret_cast<const char*>(unit) + kAhead + 64 * plane, _MM_HINT_T0);
      }
      int64_t coarse, fine;
      __builtin_memcpy(&coarse, prepared + layout.coarse + 8 * at, sizeof(coarse));
      __builtin_memcpy(&fine, prepared + layout.fine + 8 * at, sizeof(fine));
      const SingleToken token = {_mm512_load_si512(q + at * kE8pColumns), _mm512_set1_epi64(coarse),
                                 _mm512_set1_epi64(fine)};
      constexpr int kFirst = kBits == 2 ? 0 : kBits == 3 ? 1 : 7;
      const uint8_t* rest = unit + 2 * kE8pColumns;
      add_lattice<kFirst>(unit, tables, token, sums.first, sums.second, sums.runs);
      if constexpr (kBits == 3) add_bits(rest, tables, token, sums.second, sums.runs);
      if constexpr (kBits == 4) {
        add_lattice<2>(rest, tables, token, sums.second, nullptr, sums.runs);
      }
    }
    const int64_t rows = end - row < kE8pRows ? end - row : kE8pRows;
    const __m256 scaled =
        _mm256_mul_ps(_mm256_cvtepi32_ps(weighed<kBits>(sums)), _mm256_load_ps(w.scales + row));
    const __m256 result = _mm256_mul_ps(scaled, _mm256_set1_ps(layout.scale_of(prepared)));
    _mm256_mask_storeu_ps(y + row, static_cast<__mmask8>((1 << rows) - 1), result);
  }
}

}  // namespace
}  // namespace onnxq
