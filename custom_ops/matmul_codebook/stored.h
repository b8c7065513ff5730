// A weight as it is stored in the file, and its repacking for the kernels.
#pragma once

#include <vector>

#include "../cpu/memory.h"
#include "matmul_codebook.h"

namespace onnxq {

// Arrays of onnxq.formats.CodebookFormat: codes are streams of bits, row by row, lowest bits first.
struct StoredCodes {
  int64_t rows, columns, group;
  int64_t block_rows, block_columns;  // that share books
  int dimension, bits, books;
  const uint8_t* codes;    // [rows, row_bytes()]
  const int8_t* codebook;  // [row_blocks(), column_blocks(), books, 2^bits, dimension]
  const uint16_t* scales;  // [scale_rows, groups()], float16
  int64_t scale_rows;      // 1, or rows

  int64_t groups() const { return (columns + group - 1) / group; }
  int64_t row_blocks() const { return (rows + block_rows - 1) / block_rows; }
  int64_t column_blocks() const { return (columns + block_columns - 1) / block_columns; }
  int64_t lookups() const { return columns / dimension * books; }
  int64_t row_bytes() const { return (lookups() * bits + 7) / 8; }
  int64_t entries() const { return int64_t{1} << bits; }
  int code(int64_t row, int64_t lookup) const;
};

// Owns what a CodeMatrix points to.
class PackedCodes {
 public:
  explicit PackedCodes(const StoredCodes& stored);
  PackedCodes(const PackedCodes&) = delete;
  PackedCodes& operator=(const PackedCodes&) = delete;
  const CodeMatrix& matrix() const { return matrix_; }

 private:
  void cut_tiles(const StoredCodes& stored);
  void pack_block(const StoredCodes& stored, const std::vector<int32_t>& sums, int64_t block);
  void pack_tables(const StoredCodes& stored, const std::vector<int32_t>& sums);

  CodeMatrix matrix_;
  Memory codes_, scales_, offsets_, books_, table_books_, table_offsets_;
};

}  // namespace onnxq
