// Y = A W^T with W in codes of vectors: runs of `dimension` columns of a row are sums of entries,
// one of each of `books` codebooks of int8.
//
// A token a is rounded to int8, q = round(a * (127 / m)), ties to even, with m = max |a| (at least
// 2^-100); then y = m / 127 * sum over tiles of scale * (sum over the columns of the tile of q *
// w), the inner sums being exact in int32. Tiles are cut by the shape of the format alone, and
// summed in their order: whatever way the inner sums are taken, y is the same bit for bit. Or the
// token stays in float32, and so do products and sums.
//
// Two ways to the inner sums:
//   tables   for few tokens: the products of a run of the token with every entry of a book are put
//            into a table, and codes of 64 rows look theirs up, 8 bits at a time.
//   panels   the codes of 64 rows are decoded into a panel of int8, and that is multiplied.
#pragma once

#include <cstdint>
#include <vector>

namespace onnxq {

constexpr int64_t kCodeRows = 64;        // rows of a block
constexpr int64_t kMostLookups = 128;    // codes of a row in a tile, at most
constexpr int64_t kMostColumns = 512;    // columns of a tile, at most
constexpr int64_t kTableEntries = 256;   // entries of a book that tables are made for, at most
constexpr int64_t kMostMagnitude = 258;  // times 127 it fits int16
constexpr float kCodeLeast = 0x1p-100f;  // the least m

// Columns whose codes share scales and books.
struct CodeTile {
  int64_t column, columns;
  int64_t lookups;      // codes of a row
  int64_t offset;       // of its codes in a block, in bytes
  int64_t group;        // of scales
  int64_t column_book;  // which books along the columns
  int64_t table;        // the first of its tables, an even number

  int64_t quads() const { return (columns + 3) / 4; }
};

// A weight as kernels read it. Codes of a tile of a block lie [lookup][lane], bytes (two lookups in
// one with 16 entries, the first in the low half) or 16-bit words (over 256 entries); a lookup is
// (run, book). Lane 2 i is row i of the block and lane 2 i + 1 row 32 + i.
struct CodeMatrix {
  int64_t rows, columns;
  int dimension, books;
  int64_t entries;
  int64_t groups;                   // scales of a row
  int64_t book_rows, column_books;  // rows that share books, and how many sets there are across
  int64_t row_books;                // how many sets there are down
  std::vector<CodeTile> tiles;
  int64_t block_bytes;     // of the codes of a block
  int64_t tables;          // of all tiles
  const uint8_t* codes;    // [blocks][block_bytes]
  const float* scales;     // [blocks][groups][64]
  const int32_t* offsets;  // [blocks][tiles][64], 128 times the sum of the weights
  const int8_t* codebook;  // [row books][column books][books][entries][dimension], and 8 bytes more
  // The books as tables are made of them (see pack_tables), or null: entries [row books]
  // [column books][books][table_bytes] and 128 times their sums, negative, [...][entries].
  const int8_t* table_books;
  const int32_t* table_offsets;

  int64_t lookup_bytes(int64_t lookups) const {
    return entries <= 16 ? (lookups + 1) / 2 * kCodeRows
                         : lookups * kCodeRows * (entries <= kTableEntries ? 1 : 2);
  }
  int64_t table_bytes() const { return entries * (dimension == 8 ? 8 : 4); }
  int64_t book_at(int64_t block, const CodeTile& tile) const {
    return (block * kCodeRows / book_rows * column_books + tile.column_book) * books;
  }
  // A token as it is multiplied: q + 128 for every column, 128 behind them, and the scale.
  int64_t scale_at() const { return (columns + 8 + 63) / 64 * 64; }
  int64_t token_bytes() const { return scale_at() + 64; }
  // The same with the tables of its products behind it, [row books][tables][2][entries].
  int64_t tables_at(int64_t row_book) const {
    return token_bytes() + row_book * tables * 2 * entries;
  }
  int64_t tabled_bytes() const { return tables_at(row_books); }
};

struct CodeKernels {
  const char* name;
  int64_t table_tokens;  // up to so many tokens tables are faster than panels; 0 without tables
  // Tokens [begin, end) of a [tokens, columns] as `prepared`, token_bytes() for each.
  void (*prepare)(const CodeMatrix& w, const float* a, int64_t begin, int64_t end,
                  uint8_t* prepared);
  // y[token * stride + row] for rows [begin, end), begin being a multiple of 64; by panels.
  void (*multiply)(const CodeMatrix& w, const uint8_t* prepared, int64_t tokens, float* y,
                   int64_t stride, int64_t begin, int64_t end);
  // The same by tables, where there are any; null where the instructions have no lookup for them.
  // Items [begin, end) of the tiles of all tokens are prepared as tabled_bytes() for each token.
  void (*prepare_tables)(const CodeMatrix& w, const float* a, int64_t begin, int64_t end,
                         uint8_t* prepared);
  void (*look_up)(const CodeMatrix& w, const uint8_t* prepared, int64_t tokens, float* y,
                  int64_t stride, int64_t begin, int64_t end);
  // The same with tokens in float32.
  void (*multiply_float)(const CodeMatrix& w, const float* a, int64_t tokens, float* y,
                         int64_t stride, int64_t begin, int64_t end);
};

const CodeKernels& code_kernels();          // the best ones that may be used (see cpu/cpu.h)
const CodeKernels& code_kernels_generic();  // the baseline of the architecture
const CodeKernels* code_kernels_avx2();     // null where not compiled
const CodeKernels* code_kernels_avx512();
const CodeKernels* code_kernels_vnni();
const CodeKernels* code_kernels_dot();

}  // namespace onnxq
