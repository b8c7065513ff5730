// A weight as it is stored in the file, and its repacking for the kernels.
#pragma once

#include "../cpu/memory.h"
#include "matmul_int.h"

namespace onnxq {

// Arrays of onnxq.formats.IntFormat: codes and zeros are streams of bits, row by row, lowest bits
// first.
struct StoredIntegers {
  int64_t rows, columns, group;
  int bits;
  bool is_signed;                    // codes are two's complement, and there are no zeros
  const uint8_t* codes;              // [rows, ceil(columns * bits / 8)]
  const float* scales;               // [scale_rows, scale_groups]
  int64_t scale_rows, scale_groups;  // 1, or rows; 1, or groups
  const int8_t* ratios;              // [rows, groups], or null
  const uint8_t* zeros;              // [zero_rows, ceil(groups * bits / 8)], or null
  int64_t zero_rows;                 // 1, or rows

  int64_t groups() const { return (columns + group - 1) / group; }
  int64_t bytes_of(int64_t codes) const { return (codes * bits + 7) / 8; }
  // Unsigned, as are the zeros to be subtracted.
  int code(int64_t row, int64_t column) const;
  int zero(int64_t row, int64_t g) const;
};

// Owns what an IntMatrix points to.
class PackedIntegers {
 public:
  explicit PackedIntegers(const StoredIntegers& stored);
  const IntMatrix& matrix() const { return matrix_; }

 private:
  void pack_block(const StoredIntegers& stored, int64_t block);

  IntMatrix matrix_;
  Memory memory_;
  uint8_t *codes_, *ratios_, *zeros_;
  float* scales_;
};

}  // namespace onnxq
