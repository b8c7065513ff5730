// Round to nearest by groups along the columns of a weight: see onnxq/numerics/rounding.py for
// the meaning.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tile.h"

namespace onnxq {

// float32 [rows][columns]; strides are in elements, and one of them is 1.
struct Weight {
  const float* data;
  int64_t rows, columns;
  ptrdiff_t row_stride, column_stride;
};

struct Rounding {
  Levels levels;
  int64_t group;        // columns that share a scale
  const float* shrink;  // factors tried on every scale
  int shrink_count;
};

// Where results go. Unpacked: codes [rows][columns], zeros [rows][groups]. Packed: codes
// [rows][groups][group * bits / 8] shifted to be unsigned, zeros [rows][ceil(groups * bits / 8)]
// that the caller has cleared.
struct Rounded {
  uint8_t* codes;
  float* scales;   // [rows][groups]
  uint8_t* zeros;  // not touched when symmetric
  double* noise;   // [rows], squared rounding errors
  double* signal;  // [rows], squared values
  bool packed;
};

enum class RoundingStatus { kOk = 0, kNotFinite = 1, kScaleOverflow = 2 };

// The result does not depend on `threads`, nor on `kernels`. Packed output needs bits of 2, 4 or 8
// and a group that is a multiple of 8.
RoundingStatus round_groups(const Weight&, const Rounding&, const Rounded&, int threads,
                            const TileKernels& kernels);

}  // namespace onnxq
