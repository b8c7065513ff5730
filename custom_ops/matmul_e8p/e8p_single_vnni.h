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

// What the rows of a unit are multiplied by: masks of bits, and masks of lanes of int32, two for
// each run that is chosen, of even and of odd rows.
struct UnitMasks {
  void choose(__mmask64 runs) {
    const __m512i bytes = _mm512_movm_epi8(runs);
    lanes[0] = _mm512_movepi8_mask(_mm512_unpacklo_epi8(bytes, bytes));
    lanes[1] = _mm512_movepi8_mask(_mm512_unpackhi_epi8(bytes, bytes));
  }
  __mmask16 lanes_of(int row) const {
    __mmask16 mask;
    __builtin_memcpy(&mask, reinterpret_cast<const char*>(lanes + row % 2) + row / 2 * 2, 2);
    return mask;
  }

  RowMasks minus, threes;
  __mmask64 lanes[2];
};

// q at one of the places of each run: bits [0, 3) of `places`.
inline __m512i token_at(__m512i q, __m512i places, __mmask64 where) {
  const __m512i runs = _mm512_set1_epi64(0x3830282018100800);
  constexpr int kAndOr = 0xea;  // (a & b) | c
  const __m512i at = _mm512_ternarylogic_epi32(places, _mm512_set1_epi8(7), runs, kAndOr);
  return _mm512_maskz_permutexvar_epi8(where, at, q);
}

// Masks of codes of the lattice, and what they add for runs. With kGain 0 gains are 7 and 8.
template <int kGain>
[[gnu::always_inline]] inline void look_up_lattice(const uint8_t* codes, const LookupTables& tables,
                                                   const SingleToken& token, UnitMasks& masks,
                                                   __m512i& runs) {
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
  masks.minus.set(found.signs);
  masks.threes.set(found.threes);
  if constexpr (kGain == 0) masks.choose(found.is_long);
}

// Codes of the one-bit book: those below 128 are signs of ones, the others two places.
[[gnu::always_inline]] inline void look_up_bits(const uint8_t* codes, const LookupTables& tables,
                                                const SingleToken& token, UnitMasks& masks,
                                                __m512i& runs) {
  const __m512i code = _mm512_load_si512(codes);
  const __mmask64 is_pair = _mm512_movepi8_mask(code);
  const __m512i pair = _mm512_permutex2var_epi8(tables.pairs[0], code, tables.pairs[1]);
  const __m512i two = _mm512_set1_epi8(2);
  const __m512i at_first = token_at(token.q, pair, is_pair);
  const __m512i at_second = token_at(token.q, _mm512_srli_epi16(pair, 3), is_pair);
  const __mmask64 is_first_minus = _mm512_test_epi8_mask(pair, _mm512_set1_epi8(64));
  runs = _mm512_dpbusd_epi32(runs, two, negated(at_first, is_first_minus));
  runs = _mm512_dpbusd_epi32(runs, two, negated(at_second, _mm512_movepi8_mask(pair)));
  constexpr int kOrAnd = 0xf8;  // a | (b & c)
  const __m512i parity = _mm512_slli_epi16(_mm512_popcnt_epi8(code), 7);
  masks.minus.set(_mm512_ternarylogic_epi32(code, parity, _mm512_set1_epi8(-128), kOrAnd));
  masks.choose(~is_pair);
}

// Adds 64 columns of 8 rows: sums of all runs, and of the long ones.
template <bool kHasLongs>
[[gnu::always_inline]] inline void add_lattice(const UnitMasks& masks, __m512i q, __m512i* sums,
                                               __m512i* longer) {
  const __m512i two = _mm512_set1_epi8(2), six = _mm512_set1_epi8(6);
#pragma GCC unroll 8
  for (int row = 0; row < kE8pRows; ++row) {
    const __m512i magnitude = _mm512_mask_blend_epi8(masks.threes[row], two, six);
    const __m512i turned = negated(q, masks.minus[row]);
    sums[row] = _mm512_dpbusd_epi32(sums[row], magnitude, turned);
    if constexpr (kHasLongs) {
      longer[row] = _mm512_mask_dpbusd_epi32(longer[row], masks.lanes_of(row), magnitude, turned);
    }
  }
}

[[gnu::always_inline]] inline void add_bits(const UnitMasks& masks, __m512i q, __m512i* sums) {
  const __m512i one = _mm512_set1_epi8(1);
#pragma GCC unroll 8
  for (int row = 0; row < kE8pRows; ++row) {
    const __m512i turned = negated(q, masks.minus[row]);
    sums[row] = _mm512_mask_dpbusd_epi32(sums[row], masks.lanes_of(row), one, turned);
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

constexpr int64_t kBatch = 8;  // units looked up before any is multiplied

// Masks of `count` units.
template <int kBits>
inline void look_up(const uint8_t* unit, const uint8_t* prepared, const E8pToken& layout,
                    const LookupTables& tables, int64_t first, int64_t count, UnitMasks (*masks)[2],
                    __m512i& runs) {
  constexpr int kAhead = 2048, kFirst = kBits == 2 ? 0 : kBits == 3 ? 1 : 7;
  for (int64_t at = 0; at < count; ++at, unit += kBits * kE8pColumns) {
    for (int plane = 0; plane < kBits; ++plane) {
      _mm_prefetch(reinterpret_cast<const char*>(unit) + kAhead + 64 * plane, _MM_HINT_T0);
    }
    int64_t coarse, fine;
    __builtin_memcpy(&coarse, prepared + layout.coarse + 8 * (first + at), sizeof(coarse));
    __builtin_memcpy(&fine, prepared + layout.fine + 8 * (first + at), sizeof(fine));
    const int8_t* q = layout.codes_of(prepared) + (first + at) * kE8pColumns;
    const SingleToken token = {_mm512_load_si512(q), _mm512_set1_epi64(coarse),
                               _mm512_set1_epi64(fine)};
    const uint8_t* rest = unit + 2 * kE8pColumns;
    look_up_lattice<kFirst>(unit, tables, token, masks[at][0], runs);
    if constexpr (kBits == 3) look_up_bits(rest, tables, token, masks[at][1], runs);
    if constexpr (kBits == 4) look_up_lattice<2>(rest, tables, token, masks[at][1], runs);
  }
}

// One token, as it is prepared, times rows [begin, end).
template <int kBits>
void multiply_single(const E8pMatrix& w, const uint8_t* prepared, float* y, int64_t begin,
                     int64_t end) {
  const E8pToken layout(w);
  const LookupTables tables;
  const int8_t* codes = layout.codes_of(prepared);
  const int64_t units = w.units();
  for (int64_t row = begin; row < end; row += kE8pRows) {
    const uint8_t* unit = w.codes + row / kE8pRows * w.block_bytes();
    SingleSums sums;
#pragma GCC unroll 8
    for (int at = 0; at < kE8pRows; ++at) {
      sums.first[at] = sums.second[at] = _mm512_setzero_si512();
    }
    sums.runs = _mm512_setzero_si512();
    for (int64_t first = 0; first < units; first += kBatch, unit += kBatch * w.unit_bytes()) {
      const int64_t count = units - first < kBatch ? units - first : kBatch;
      UnitMasks masks[kBatch][2];
      look_up<kBits>(unit, prepared, layout, tables, first, count, masks, sums.runs);
      __asm__("" : "+m"(masks));  // masks are loaded from there, not moved through other registers
      for (int64_t at = 0; at < count; ++at) {
        const __m512i q = _mm512_load_si512(codes + (first + at) * kE8pColumns);
        add_lattice<kBits == 2>(masks[at][0], q, sums.first, sums.second);
        if constexpr (kBits == 3) add_bits(masks[at][1], q, sums.second);
        if constexpr (kBits == 4) add_lattice<false>(masks[at][1], q, sums.second, nullptr);
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
