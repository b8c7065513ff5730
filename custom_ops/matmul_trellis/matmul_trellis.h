// Y = A W^T with W in codes of a trellis and A rounded to int8, or in float32 as it is.
//
// A tile of 16 rows and 16 columns is a ring of bits, row by row; a weight is the value of the
// state that begins at its bits, times the scale of its row. A state reaches into the bits of the
// row behind its own, never further. Sixteen rows are worked on side by side: the bits of a row,
// and those of the next one, which are the same bits one lane on, are shifted by as much as the
// column says, and the states of sixteen rows become whole numbers by arithmetic (trellis_codes.h).
//
// A token is rounded as matmul_int/matmul_int.h says. Products with whole numbers are summed
// exactly in int32 over a chunk of 512 columns, chunks in float32.
//
// Layout. The tiles of 16 rows lie one behind the other. The `run` bytes of the 16 columns of a row
// are cut into words of 4 bytes, then one of 2, then one of 1, as far as needed; a word of all
// rows, then the next. Rows that the last tile lacks are the first ones again, which closes its
// ring.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../matmul_int/matmul_int.h"
#include "trellis_codes.h"

namespace onnxq {

constexpr int64_t kTrellisTile = 16;
constexpr int64_t kTrellisChunk = 512;  // columns: 127 * 32752 * 512 fits int32

// A weight as kernels read it.
struct TrellisMatrix {
  int64_t rows, columns;  // columns are a multiple of 16
  TrellisCode code;
  int step_bits, state_bits;
  const uint8_t* codes;  // [row tiles][column tiles][16 * run()]
  const float* scales;   // [row tiles][16], of whole numbers

  int vector() const { return code == TrellisCode::kHyb ? 2 : 1; }
  int run() const { return 2 * step_bits / vector(); }
  int64_t tile_bytes() const { return kTrellisTile * run(); }
  int64_t block_bytes() const { return columns / kTrellisTile * tile_bytes(); }

  // How tokens are laid out: groups are chunks.
  IntMatrix token_shape() const {
    IntMatrix shape{};
    shape.columns = columns;
    shape.group = kTrellisChunk;
    shape.groups = (columns + kTrellisChunk - 1) / kTrellisChunk;
    shape.units = kTrellisChunk / kIntUnit;
    const int64_t last = columns - (shape.groups - 1) * kTrellisChunk;
    shape.last_units = (last + kIntUnit - 1) / kIntUnit;
    return shape;
  }
};

struct TrellisKernels {
  const char* name;
  // y[token * stride + row] for all tokens and rows [begin, end), begin being a multiple of 16.
  // Tokens are those of IntKernels::prepare for `token_shape`.
  void (*multiply)(const TrellisMatrix& w, const uint8_t* prepared, int64_t tokens, float* y,
                   int64_t stride, int64_t begin, int64_t end);
  // The same for tokens a [tokens, columns] as they are.
  void (*multiply_float)(const TrellisMatrix& w, const float* a, int64_t tokens, float* y,
                         int64_t stride, int64_t begin, int64_t end);
};

const TrellisKernels& trellis_kernels();          // the best ones that may be used (see cpu/cpu.h)
const TrellisKernels& trellis_kernels_generic();  // the baseline of the architecture
const TrellisKernels* trellis_kernels_avx2();     // null where not compiled
const TrellisKernels* trellis_kernels_avx512();
const TrellisKernels* trellis_kernels_vnni();

}  // namespace onnxq
