// A weight as it is stored, and as kernels of MatMulLut read it.
#pragma once

#include <cstdint>

#include "../cpu/memory.h"
#include "lut.h"

namespace onnxq {

// The arrays of a file; an axis of length 1 is shared.
struct StoredLut {
  int64_t rows, columns;
  int bits;
  int64_t group;           // columns that share a table or a scale
  const uint8_t* codes;    // [rows][row_bytes()], bits of one code after the other
  const int8_t* entries;   // [lut_rows][lut_groups][2^bits], or null
  const uint16_t* halves;  // the same in float16, or null
  const uint16_t* scales;  // float16 [scale_rows][scale_groups]
  int64_t lut_rows, lut_groups, scale_rows, scale_groups;

  int64_t row_bytes() const { return (columns * bits + 7) / 8; }
  int64_t groups() const { return (columns + group - 1) / group; }
  unsigned code(int64_t row, int64_t column) const;
};

// Repacked once, codes of 1 bit as those of 2; an object of it is only read.
class PackedLut {
 public:
  // Entries are for 8-bit activations of kernels with this offset, or for float32 ones.
  PackedLut(const StoredLut& stored, bool rounds, int offset);
  const LutMatrix& matrix() const { return matrix_; }

 private:
  void pack_codes(const StoredLut& stored);
  void pack_scales(const StoredLut& stored);
  void pack_tables(const StoredLut& stored, bool rounds, int offset);

  LutMatrix matrix_{};
  int64_t padded_groups_ = 1;  // in memory: units read the scales of four groups
  Memory groups_, codes_, tables_, scales_, values_;
};

}  // namespace onnxq
