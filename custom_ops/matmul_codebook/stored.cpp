#include "stored.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "../hadamard/hadamard.h"

namespace onnxq {

int StoredCodes::code(int64_t row, int64_t lookup) const {
  const uint8_t* stream = codes + row * row_bytes();
  const int64_t place = lookup * bits, shift = place % 8;
  int word = stream[place / 8];
  if (shift + bits > 8) word |= stream[place / 8 + 1] << 8;
  return word >> shift & ((1 << bits) - 1);
}

PackedCodes::PackedCodes(const StoredCodes& stored) : matrix_{} {
  CodeMatrix& w = matrix_;
  w.rows = stored.rows;
  w.columns = stored.columns;
  w.dimension = stored.dimension;
  w.books = stored.books;
  w.entries = stored.entries();
  w.groups = stored.groups();
  w.book_rows = stored.block_rows;
  w.column_books = stored.column_blocks();
  w.row_books = stored.row_blocks();
  cut_tiles(stored);
  const int64_t blocks = (w.rows + kCodeRows - 1) / kCodeRows;
  const int64_t sets = stored.row_blocks() * w.column_books * w.books;
  const int64_t size = w.entries * w.dimension;
  w.codes = codes_.zeros<uint8_t>(blocks * w.block_bytes);
  w.scales = scales_.zeros<float>(blocks * w.groups * kCodeRows);
  w.offsets = offsets_.zeros<int32_t>(blocks * static_cast<int64_t>(w.tiles.size()) * kCodeRows);
  int8_t* const books = books_.zeros<int8_t>(sets * size + 8);
  std::memcpy(books, stored.codebook, static_cast<size_t>(sets * size));
  w.codebook = books;
  std::vector<int32_t> sums(static_cast<size_t>(sets * w.entries));  // of entries
  int64_t most = 0;
  for (int64_t entry = 0; entry < sets * w.entries; ++entry) {
    int64_t magnitude = 0;
    for (int at = 0; at < w.dimension; ++at) {
      const int value = books[entry * w.dimension + at];
      sums[static_cast<size_t>(entry)] += value;
      magnitude += std::abs(value);
    }
    most = std::max(most, magnitude);
  }
  for (int64_t block = 0; block < blocks; ++block) pack_block(stored, sums, block);
  if (w.entries <= kTableEntries && most <= kMostMagnitude) pack_tables(stored, sums);
}

// Tiles end where scales or books change, or when they are full.
void PackedCodes::cut_tiles(const StoredCodes& stored) {
  CodeMatrix& w = matrix_;
  const int64_t fit = std::min(kMostColumns, kMostLookups / w.books * w.dimension);
  const int64_t most = fit / w.dimension * w.dimension;
  for (int64_t column = 0; column < w.columns;) {
    const int64_t group = column / stored.group, book = column / stored.block_columns;
    const int64_t end = std::min(
        {w.columns, (group + 1) * stored.group, (book + 1) * stored.block_columns, column + most});
    const int64_t lookups = (end - column) / w.dimension * w.books;
    w.tiles.push_back({column, end - column, lookups, w.block_bytes, group, book, w.tables});
    w.tables += (lookups + 1) / 2 * 2;
    w.block_bytes += w.lookup_bytes(lookups);
    column = end;
  }
}

void PackedCodes::pack_block(const StoredCodes& stored, const std::vector<int32_t>& sums,
                             int64_t block) {
  const CodeMatrix& w = matrix_;
  const int64_t tiles = static_cast<int64_t>(w.tiles.size());
  const int64_t first = block * kCodeRows, rows = std::min(kCodeRows, w.rows - first);
  uint8_t* const codes = const_cast<uint8_t*>(w.codes) + block * w.block_bytes;
  int32_t* const offsets = const_cast<int32_t*>(w.offsets) + block * tiles * kCodeRows;
  float* const scales = const_cast<float*>(w.scales) + block * w.groups * kCodeRows;
  std::vector<float> wide(static_cast<size_t>(w.groups));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t lane = row < kCodeRows / 2 ? 2 * row : 2 * row - kCodeRows + 1;
    const int64_t scale_row = stored.scale_rows == 1 ? 0 : first + row;
    hadamard_kernels().widen(stored.scales + scale_row * w.groups, wide.data(), w.groups);
    for (int64_t g = 0; g < w.groups; ++g) {
      scales[g * kCodeRows + row] = wide[static_cast<size_t>(g)];
    }
    for (int64_t index = 0; index < tiles; ++index) {
      const CodeTile& tile = w.tiles[static_cast<size_t>(index)];
      const int64_t before = tile.column / w.dimension * w.books, books = w.book_at(block, tile);
      int32_t sum = 0;
      for (int64_t lookup = 0; lookup < tile.lookups; ++lookup) {
        const int code = stored.code(first + row, before + lookup);
        sum += sums[static_cast<size_t>((books + lookup % w.books) * w.entries + code)];
        uint8_t* to = codes + tile.offset;
        if (w.entries <= 16) {
          to[lookup / 2 * kCodeRows + lane] |= static_cast<uint8_t>(code << lookup % 2 * 4);
        } else if (w.entries <= kTableEntries) {
          to[lookup * kCodeRows + lane] = static_cast<uint8_t>(code);
        } else {
          const uint16_t word = static_cast<uint16_t>(code);
          std::memcpy(to + (lookup * kCodeRows + lane) * 2, &word, sizeof(word));
        }
      }
      offsets[index * kCodeRows + row] = 128 * sum;
    }
  }
}

// Four numbers of an entry lie together, those of an entry of eight in two vectors of 16 entries.
// 64 entries lie in the order in which the packing of 32 bits into 8, in parts of 128 bits, puts
// them right: entry 16 l + 4 q + j is the (4 l + j)th of the qth 16.
void PackedCodes::pack_tables(const StoredCodes& stored, const std::vector<int32_t>& sums) {
  CodeMatrix& w = matrix_;
  const int64_t sets = stored.row_blocks() * w.column_books * w.books;
  int8_t* const books = table_books_.zeros<int8_t>(sets * w.table_bytes());
  int32_t* const offsets = table_offsets_.zeros<int32_t>(sets * w.entries);
  const int64_t parts = w.dimension == 8 ? 2 : 1, width = std::min(w.dimension, 4);
  for (int64_t at = 0; at < sets * w.entries; ++at) {
    const int64_t set = at / w.entries, entry = at % w.entries, inner = entry % 64;
    int64_t place = entry;
    if (w.entries > 16) {
      place = entry - inner + inner / 4 % 4 * 16 + inner / 16 * 4 + inner % 4;
    }
    offsets[set * w.entries + place] = -128 * sums[static_cast<size_t>(at)];
    for (int64_t part = 0; part < parts; ++part) {
      std::memcpy(books + set * w.table_bytes() + (place / 16 * parts + part) * 64 + place % 16 * 4,
                  w.codebook + at * w.dimension + part * 4, static_cast<size_t>(width));
    }
  }
  w.table_books = books;
  w.table_offsets = offsets;
}

}  // namespace onnxq
