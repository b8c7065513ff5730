// Y = A W^T with W in trits, three rows in five bits (see trits.h), and A rounded to int8 as
// matmul_int does: sums of int8 times digits, less the sum of the tokens' codes, are exact in
// int32.
#pragma once

#include <cstdint>

#include "../matmul_int/matmul_int.h"

namespace onnxq {

constexpr int64_t kTritRows = 48;    // rows of a block
constexpr int64_t kTritUnit = 320;   // bytes of a unit of kIntUnit columns
constexpr int64_t kTritFifth = 256;  // where its fifth bits begin

// A weight as the kernel reads it. Pointers are aligned to 64 bytes.
struct TritMatrix {
  IntMatrix tokens;      // what tokens are prepared for: columns and groups, and no codes
  const uint8_t* codes;  // [blocks][units of all groups][kTritUnit]
  const float* scales;   // [blocks][groups][kTritRows]
};

// y[token * stride + row] for all tokens and rows [begin, end), begin being a multiple of
// kTritRows.
using MultiplyTrits = void (*)(const TritMatrix& w, const uint8_t* prepared, int64_t tokens,
                               float* y, int64_t stride, int64_t begin, int64_t end);

MultiplyTrits multiply_trits_vnni();  // null where not compiled

}  // namespace onnxq
