// Products by tables, for AVX-512 with VNNI and VBMI; a part of matmul_codebook_vnni.cpp.
//
// A table holds the products of one run of the token with all entries of one book: at most 127 *
// 258 in magnitude, so 16 bits, of which the low bytes and the high bytes (with 128 added) are two
// tables of bytes. A register of 64 codes looks up 64 low and 64 high bytes. They are summed in 16
// bits: once as they lie, even bytes plus 256 times odd bytes, and once shifted, odd bytes alone;
// at most kMostLookups * 255 each, so that the even ones come out as the difference.
#pragma once

namespace {

// Bytes of the tables of a lookup: low ones, then high ones.
template <int kEntries>
constexpr int64_t kTable = 2 * kEntries;

// sum + q * entries for 16 entries, of 4 or 8 numbers each.
template <int kParts>
inline __m512i entry_products(__m512i sum, const __m512i* a, const int8_t* entries) {
  for (int part = 0; part < kParts; ++part) {
    sum = _mm512_dpbusd_epi32(sum, a[part], _mm512_load_si512(entries + 64 * part));
  }
  return sum;
}

// Entries lie as pack_tables in stored.cpp says: packing puts them into their order.
template <int kEntries, int kDimension>
inline void make_table(const uint8_t* token, const int8_t* entries, const int32_t* offsets,
                       uint8_t* table) {
  const __m512i low = _mm512_set1_epi16(0xff), flip = _mm512_set1_epi8(-128);
  constexpr int kParts = kDimension == 8 ? 2 : 1;
  __m512i a[kParts];
  for (int part = 0; part < kParts; ++part) {
    int32_t four = 0;
    std::memcpy(&four, token + 4 * part, kDimension < 4 ? kDimension : 4);
    a[part] = _mm512_set1_epi32(four);
  }
  if constexpr (kEntries == 16) {
    const __m512i sum = entry_products<kParts>(_mm512_load_si512(offsets), a, entries);
    const __m128i lows = _mm512_cvtepi32_epi8(sum);
    const __m128i highs = _mm512_cvtepi32_epi8(_mm512_srai_epi32(sum, 8));
    _mm_store_si128(reinterpret_cast<__m128i*>(table), lows);
    _mm_store_si128(reinterpret_cast<__m128i*>(table + 16),
                    _mm_xor_si128(highs, _mm_set1_epi8(-128)));
  } else {
    for (int at = 0; at < kEntries; at += 64) {
      __m512i sum[4];
      for (int quarter = 0; quarter < 4; ++quarter) {
        sum[quarter] = entry_products<kParts>(_mm512_load_si512(offsets + at + 16 * quarter), a,
                                              entries + (at + 16 * quarter) * 4 * kParts);
      }
      const __m512i first = _mm512_packs_epi32(sum[0], sum[1]);
      const __m512i second = _mm512_packs_epi32(sum[2], sum[3]);
      _mm512_store_si512(table + at, _mm512_packus_epi16(_mm512_and_si512(first, low),
                                                         _mm512_and_si512(second, low)));
      const __m512i highs =
          _mm512_packus_epi16(_mm512_srli_epi16(first, 8), _mm512_srli_epi16(second, 8));
      _mm512_store_si512(table + kEntries + at, _mm512_xor_si512(highs, flip));
    }
  }
}

// Sums of bytes of 64 rows in 16 bits: all, and those of odd bytes.
struct ByteSums {
  __m512i all, odd;

  inline void add(__m512i bytes) {
    all = _mm512_add_epi16(all, bytes);
    odd = _mm512_add_epi16(odd, _mm512_srli_epi16(bytes, 8));
  }
  // Rows 0 to 31 and 32 to 63.
  inline __m512i half(int index) const {
    return index == 0 ? _mm512_sub_epi16(all, _mm512_slli_epi16(odd, 8)) : odd;
  }
};

// A part of a table that stays in a register: compilers read it again from memory for each block,
// and one read in a cycle is what takes the time then.
inline __m512i in_register(const uint8_t* from) {
  __m512i part = _mm512_load_si512(from);
  __asm__("" : "+v"(part));
  return part;
}

template <int kEntries>
struct Lookup;

template <>
struct Lookup<256> {
  static constexpr int kCodes = 1;  // codes in a byte
  __m512i table[8];

  inline void load(const uint8_t* tables) {
    for (int part = 0; part < 8; ++part) table[part] = in_register(tables + 64 * part);
  }
  inline void add(__m512i codes, ByteSums& low, ByteSums& high) const {
    const __mmask64 upper = _mm512_movepi8_mask(codes);
    low.add(_mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(table[0], codes, table[1]),
                                   _mm512_permutex2var_epi8(table[2], codes, table[3])));
    high.add(_mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(table[4], codes, table[5]),
                                    _mm512_permutex2var_epi8(table[6], codes, table[7])));
  }
};

template <>
struct Lookup<64> {
  static constexpr int kCodes = 1;
  __m512i low_table, high_table;

  inline void load(const uint8_t* tables) {
    low_table = _mm512_load_si512(tables);
    high_table = _mm512_load_si512(tables + 64);
  }
  inline void add(__m512i codes, ByteSums& low, ByteSums& high) const {
    low.add(_mm512_permutexvar_epi8(codes, low_table));
    high.add(_mm512_permutexvar_epi8(codes, high_table));
  }
};

template <>
struct Lookup<16> {
  static constexpr int kCodes = 2;
  __m512i table[4];

  inline void load(const uint8_t* tables) {
    for (int part = 0; part < 4; ++part) {
      table[part] = _mm512_broadcast_i32x4(
          _mm_load_si128(reinterpret_cast<const __m128i*>(tables + 16 * part)));
    }
  }
  inline void add(__m512i codes, ByteSums& low, ByteSums& high) const {
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i first = _mm512_and_si512(codes, nibble);
    const __m512i second = _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble);
    low.add(_mm512_shuffle_epi8(table[0], first));
    high.add(_mm512_shuffle_epi8(table[1], first));
    low.add(_mm512_shuffle_epi8(table[2], second));
    high.add(_mm512_shuffle_epi8(table[3], second));
  }
};

// Adds to y of each of kBlocks blocks the products of a tile; codes of a block are `step` apart.
template <int kEntries, int kBlocks>
void look_up_blocks(const uint8_t* tables, int64_t lookups, const uint8_t* codes, int64_t step,
                    const float* const* scales, float* const* y) {
  ByteSums low[kBlocks], high[kBlocks];
  for (int block = 0; block < kBlocks; ++block) {
    low[block] = high[block] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  }
  constexpr int kCodes = Lookup<kEntries>::kCodes;
  const int64_t count = (lookups + kCodes - 1) / kCodes;
  for (int64_t at = 0; at < count; ++at, tables += kCodes * kTable<kEntries>, codes += 64) {
    Lookup<kEntries> lookup;
    lookup.load(tables);
    for (int block = 0; block < kBlocks; ++block) {
      lookup.add(_mm512_loadu_si512(codes + block * step), low[block], high[block]);
    }
  }
  const __m512i added = _mm512_set1_epi32(static_cast<int32_t>(count * kCodes * 128 * 256));
  for (int block = 0; block < kBlocks; ++block) {
    for (int part = 0; part < 4; ++part) {
      const __m512i lows = low[block].half(part / 2), highs = high[block].half(part / 2);
      const __m256i l =
          part % 2 ? _mm512_extracti64x4_epi64(lows, 1) : _mm512_castsi512_si256(lows);
      const __m256i h =
          part % 2 ? _mm512_extracti64x4_epi64(highs, 1) : _mm512_castsi512_si256(highs);
      const __m512i whole =
          _mm512_sub_epi32(_mm512_add_epi32(_mm512_cvtepu16_epi32(l),
                                            _mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 8)),
                           added);
      float* to = y[block] + 16 * part;
      const __m512 scaled =
          _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_loadu_ps(scales[block] + 16 * part));
      _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), scaled));
    }
  }
}

template <int kEntries, int kDimension>
void make_tables(const CodeMatrix& w, const CodeTile& tile, int64_t book, const uint8_t* token,
                 uint8_t* tables) {
  for (int64_t lookup = 0; lookup < tile.lookups; ++lookup, tables += kTable<kEntries>) {
    const int64_t which = book + lookup % w.books;
    make_table<kEntries, kDimension>(token + tile.column + lookup / w.books * w.dimension,
                                     w.table_books + which * w.table_bytes(),
                                     w.table_offsets + which * kEntries, tables);
  }
  if (tile.lookups % Lookup<kEntries>::kCodes) {
    std::memset(tables, 0, kEntries);
    std::memset(tables + kEntries, 128, kEntries);
  }
}

template <int kEntries>
void make_tile(const CodeMatrix& w, const CodeTile& tile, uint8_t* token) {
  for (int64_t row_book = 0; row_book < w.row_books; ++row_book) {
    const int64_t book = w.book_at(row_book * w.book_rows / kCodeRows, tile);
    uint8_t* tables = token + w.tables_at(row_book) + tile.table * kTable<kEntries>;
    (w.dimension == 8   ? make_tables<kEntries, 8>
     : w.dimension == 4 ? make_tables<kEntries, 4>
     : w.dimension == 2 ? make_tables<kEntries, 2>
                        : make_tables<kEntries, 1>)(w, tile, book, token, tables);
  }
}

void prepare_tables(const CodeMatrix& w, const float* a, int64_t begin, int64_t end,
                    uint8_t* prepared) {
  const int64_t tiles = static_cast<int64_t>(w.tiles.size());
  int64_t known = -1;
  float most = 0.0f;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t index = item / tiles;
    const CodeTile& tile = w.tiles[static_cast<size_t>(item % tiles)];
    const float* from = a + index * w.columns;
    uint8_t* token = prepared + index * w.tabled_bytes();
    if (index != known) most = largest(w, from), known = index;
    round_columns(w, from, most, tile.column, tile.column + tile.columns, token);
    (w.entries == 256  ? make_tile<256>
     : w.entries == 64 ? make_tile<64>
                       : make_tile<16>)(w, tile, token);
  }
}

// One token and one tile for rows [begin, end); a last block of fewer rows goes to `rest`.
template <int kEntries>
void look_up_tile(const CodeMatrix& w, const CodeTile& tile, const uint8_t* token, float* y,
                  float* rest, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end;) {
    const int64_t row_book = row / w.book_rows;
    const float* scales[4];
    float* to[4];
    int blocks = 0;
    for (int64_t at = row; blocks < 4 && at < end; ++blocks, at += kCodeRows) {
      if (at / w.book_rows != row_book) break;
      to[blocks] = at + kCodeRows <= end ? y + at : rest;
      scales[blocks] = w.scales + (at / kCodeRows * w.groups + tile.group) * kCodeRows;
    }
    const uint8_t* tables = token + w.tables_at(row_book) + tile.table * kTable<kEntries>;
    const uint8_t* codes = w.codes + row / kCodeRows * w.block_bytes + tile.offset;
    (blocks == 4   ? look_up_blocks<kEntries, 4>
     : blocks == 3 ? look_up_blocks<kEntries, 3>
     : blocks == 2
         ? look_up_blocks<kEntries, 2>
         : look_up_blocks<kEntries, 1>)(tables, tile.lookups, codes, w.block_bytes, scales, to);
    row += blocks * kCodeRows;
  }
}

void look_up(const CodeMatrix& w, const uint8_t* prepared, int64_t tokens, float* y, int64_t stride,
             int64_t begin, int64_t end) {
  for (int64_t index = 0; index < tokens; ++index) {
    const uint8_t* token = prepared + index * w.tabled_bytes();
    alignas(64) float rest[kCodeRows] = {};
    float* to = y + index * stride;
    std::memset(to + begin, 0, static_cast<size_t>(end - begin) * sizeof(float));
    for (const CodeTile& tile : w.tiles) {
      (w.entries == 256  ? look_up_tile<256>
       : w.entries == 64 ? look_up_tile<64>
                         : look_up_tile<16>)(w, tile, token, to, rest, begin, end);
    }
    const int64_t over = (end - begin) % kCodeRows;
    if (over) std::memcpy(to + end - over, rest, static_cast<size_t>(over) * sizeof(float));
    const float scale = scale_of(w, token);
    for (int64_t row = begin; row < end; ++row) to[row] *= scale;
  }
}

}  // namespace
