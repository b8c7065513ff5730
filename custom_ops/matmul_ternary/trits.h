// Planes of trits as they are stored in the file, as the integers of two bits that the kernels of
// matmul_int multiply with.
//
// A trit and 1 is a code 0, 1 or 2 with zero 1. Two planes are one weight of twice the columns,
// each plane filled up to whole groups: its tokens are given twice.
//
// Two bits and not fewer: on a Zen 4 core, 4096 x 4096 from the third cache, they take 129 us (4.2
// MB), and three trits in five bits, spread by vpmultishiftqb and looked up by vpermb, 166 us (3.5
// MB): seven shuffles for three vectors cost more than a sixth of the bytes.
#pragma once

#include <cstdint>
#include <vector>

#include "../matmul_int/stored.h"

namespace onnxq {

constexpr int kTritsOfByte = 5;
constexpr uint8_t kTritsHighest = 242;  // 3^5 - 1

// Arrays of onnxq.formats.TernaryFormat.
struct StoredTrits {
  int64_t rows, columns, group;
  int planes;
  const uint8_t* codes;  // [rows, planes * bytes()]
  const float* scales;   // [scale_rows, planes * groups()]
  int64_t scale_rows;    // 1, or rows

  int64_t groups() const { return (columns + group - 1) / group; }
  int64_t bytes() const { return (columns + kTritsOfByte - 1) / kTritsOfByte; }
  // The columns of the integers.
  int64_t all_columns() const { return planes == 1 ? columns : planes * groups() * group; }
};

// The weight for the kernels; codes of at most kTritsHighest.
PackedIntegers packed_trits(const StoredTrits& stored);

}  // namespace onnxq
