// Masks of bits for 64 runs of 8 weights at once, for matmul_e8p_vnni.cpp.
#pragma once

#include <immintrin.h>

#include "e8p_decode.h"

namespace onnxq {
namespace {

struct LookupTables {
  __m512i threes[4], fives, pairs[2];

  LookupTables() {
    const E8pBook& book = e8p_book();
    for (int i = 0; i < 4; ++i) threes[i] = _mm512_loadu_si512(book.threes + 64 * i);
    for (int i = 0; i < 2; ++i) pairs[i] = _mm512_loadu_si512(e8p_tables().pairs + 64 * i);
    fives = _mm512_loadu_si512(book.fives);
  }
};

// Masks of bits, one for each row.
struct RowMasks {
  void set(__m512i bits) { _mm512_store_si512(rows, bits); }
  __mmask64 operator[](int row) const { return rows[row]; }
  alignas(64) __mmask64 rows[kE8pRows];
};

// What the codes of the lattice of a unit say: a byte or a bit for each run.
struct LatticeRuns {
  LatticeRuns(const uint8_t* codes, const LookupTables& tables, bool has_longs)
      : signs(_mm512_load_si512(codes)), pattern(_mm512_load_si512(codes + kE8pColumns)) {
    is_up = _mm512_movepi8_mask(signs);
    threes = _mm512_mask_blend_epi8(
        _mm512_movepi8_mask(pattern),
        _mm512_permutex2var_epi8(tables.threes[0], pattern, tables.threes[1]),
        _mm512_permutex2var_epi8(tables.threes[2], pattern, tables.threes[3]));
    has_five = _mm512_cmplt_epu8_mask(pattern, _mm512_set1_epi8(64));
    fives = _mm512_maskz_permutexvar_epi8(has_five, pattern, tables.fives);
    // The shift counts with the signs, and turns the eighth with them: back to what it is without.
    constexpr int kXor = 0x96, kXorAnd = 0x78;  // a ^ b ^ c, a ^ (b & c)
    const __m512i parity =
        _mm512_popcnt_epi8(_mm512_ternarylogic_epi32(signs, threes, fives, kXor));
    signs = _mm512_ternarylogic_epi32(signs, _mm512_slli_epi16(parity, 7), _mm512_set1_epi8(-128),
                                      kXorAnd);
    is_long = 0;
    if (has_longs) {  // 4 threes, or 2 with a five
      const __m512i count = _mm512_popcnt_epi8(threes);
      is_long = _mm512_cmpge_epu8_mask(
          _mm512_mask_add_epi8(count, has_five, count, _mm512_set1_epi8(2)), _mm512_set1_epi8(4));
    }
  }

  __m512i signs, pattern, threes, fives;
  __mmask64 is_up, has_five, is_long;
};

}  // namespace
}  // namespace onnxq
