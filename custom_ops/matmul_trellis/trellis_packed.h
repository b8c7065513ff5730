// A weight as it is stored in the file, and its repacking for the kernels.
#pragma once

#include "../cpu/memory.h"
#include "matmul_trellis.h"

namespace onnxq {

// Arrays of onnxq.formats.TrellisFormat.
struct StoredTrellis {
  int64_t rows, columns;
  TrellisCode code;
  int step_bits, state_bits;
  const uint8_t* codes;  // [rows, columns / vector * step_bits / 8]
  const float* scales;   // [scale_rows]
  int64_t scale_rows;    // 1, or rows
};

// Owns what a TrellisMatrix points to.
class PackedTrellis {
 public:
  explicit PackedTrellis(const StoredTrellis& stored);
  const TrellisMatrix& matrix() const { return matrix_; }

 private:
  TrellisMatrix matrix_;
  Memory codes_, scales_;
};

}  // namespace onnxq
