// A weight of E8P as it is stored in the file, and its repacking for the kernels.
#pragma once

#include "../cpu/memory.h"
#include "matmul_e8p.h"

namespace onnxq {

// Arrays of onnxq.formats.E8pFormat.
struct StoredE8p {
  int64_t rows, columns;
  int bits;
  const uint8_t* codes;  // [rows, columns * bits / 8]
  const float* scales;   // [scale_rows], of 1 of the lattice
  int64_t scale_rows;    // 1, or rows
};

// Owns what an E8pMatrix points to.
class PackedE8p {
 public:
  explicit PackedE8p(const StoredE8p& stored);
  const E8pMatrix& matrix() const { return matrix_; }

 private:
  void pack_row(const StoredE8p& stored, int64_t row);

  E8pMatrix matrix_;
  Memory memory_;
  uint8_t* codes_;
  float* scales_;
};

}  // namespace onnxq
