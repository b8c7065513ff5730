// Codes of a unit as whole numbers in int8, for matmul_e8p_vnni.cpp: the bits that a weight is made
// of are added up to a place in a table.
#pragma once

#include "e8p_lookup_vnni.h"

namespace onnxq {
namespace {

// gain * (sign * magnitude + shift) at [three | five << 1 | minus << 2 | up << 3 | long << 4].
struct PanelTable {
  PanelTable(int shorter, int longer) {
    for (int at = 0; at < 64; ++at) {
      const int magnitude = 2 + 4 * (at & 1) + 4 * (at >> 1 & 1), shift = at & 8 ? 1 : -1;
      const int gain = at & 16 ? longer : shorter;
      numbers[at] = static_cast<int8_t>(gain * ((at & 4 ? -magnitude : magnitude) + shift));
    }
  }
  alignas(64) int8_t numbers[64];
};

// Codes of the lattice as numbers; added to what is there with kAdds.
template <bool kAdds>
[[gnu::always_inline]] inline void decode_lattice(const uint8_t* codes, const LookupTables& tables,
                                                  const PanelTable& table, bool has_longs,
                                                  __m512i flip, uint8_t* numbers) {
  const LatticeRuns found(codes, tables, has_longs);
  const __m512i of_run =
      _mm512_mask_add_epi8(_mm512_maskz_set1_epi8(found.is_up, 8), found.is_long,
                           _mm512_maskz_set1_epi8(found.is_up, 8), _mm512_set1_epi8(16));
  RowMasks minus, three, five;
  minus.set(found.signs);
  three.set(found.threes);
  five.set(found.fives);
  const __m512i values = _mm512_load_si512(table.numbers);
  const __m512i bytes = _mm512_set1_epi64(0x0101010101010101);
  __m512i run = _mm512_shuffle_epi8(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0),
                                    _mm512_set_epi64(0x0808080808080808, 0, 0x0808080808080808, 0,
                                                     0x0808080808080808, 0, 0x0808080808080808, 0));
#pragma GCC unroll 8
  for (int row = 0; row < kE8pRows; ++row) {
    __m512i at = _mm512_permutexvar_epi8(run, of_run);
    run = _mm512_add_epi8(run, _mm512_slli_epi16(bytes, 3));
    at = _mm512_mask_add_epi8(at, three[row], at, bytes);
    at = _mm512_mask_add_epi8(at, five[row], at, _mm512_set1_epi8(2));
    at = _mm512_mask_add_epi8(at, minus[row], at, _mm512_set1_epi8(4));
    __m512i number = _mm512_permutexvar_epi8(at, values);
    if constexpr (kAdds) {
      number = _mm512_add_epi8(number, _mm512_load_si512(numbers + row * kE8pColumns));
    } else {
      number = _mm512_xor_si512(number, flip);
    }
    _mm512_store_si512(numbers + row * kE8pColumns, number);
  }
}

// Numbers of the one-bit book added to those that are there.
inline void decode_bits(const uint8_t* codes, uint8_t* numbers) {
  const uint64_t* points = e8p_tables().points;
  for (int row = 0; row < kE8pRows; ++row, codes += 8, numbers += kE8pColumns) {
    const __m512i more = _mm512_set_epi64(
        static_cast<int64_t>(points[codes[7]]), static_cast<int64_t>(points[codes[6]]),
        static_cast<int64_t>(points[codes[5]]), static_cast<int64_t>(points[codes[4]]),
        static_cast<int64_t>(points[codes[3]]), static_cast<int64_t>(points[codes[2]]),
        static_cast<int64_t>(points[codes[1]]), static_cast<int64_t>(points[codes[0]]));
    _mm512_store_si512(numbers, _mm512_add_epi8(_mm512_load_si512(numbers), more));
  }
}

// What e8p_decode does; `numbers` is at the start of a cache line.
void decode_panel(const uint8_t* unit, int bits, uint8_t flip, uint8_t* numbers) {
  static const PanelTable both(kE8pGains.shorter, kE8pGains.longer), ones(1, 1), sevens(7, 7),
      twos(2, 2);
  const LookupTables tables;
  const __m512i flips = _mm512_set1_epi8(static_cast<char>(flip));
  const uint8_t* rest = unit + 2 * kE8pColumns;
  if (bits == 2) {
    decode_lattice<false>(unit, tables, both, true, flips, numbers);
  } else if (bits == 3) {
    decode_lattice<false>(unit, tables, ones, false, flips, numbers);
    decode_bits(rest, numbers);
  } else {
    decode_lattice<false>(unit, tables, sevens, false, flips, numbers);
    decode_lattice<true>(rest, tables, twos, false, flips, numbers);
  }
}

}  // namespace
}  // namespace onnxq
