// Planes of trits as they are stored in the file, and their repacking for the kernels.
//
// A trit and 1 is a digit 0, 1 or 2. Two planes are one weight of twice the columns, each plane
// filled up to whole groups: its tokens are given twice. Kernels hold them in one of two ways:
//
// - as integers of two bits with zero 1, for the kernels of matmul_int;
// - three rows in five bits, for AVX-512 VNNI. 48 rows make a block, 32 columns of them a unit of
// 320
//   bytes. Each vector of 64 bytes stands for 4 columns of 16 rows, and three of them, of rows 16
//   apart, for a number d0 + 3 d1 + 9 d2 in every byte. Of the 8 such triples of a unit the lower
//   four bits lie in 4 vectors, the lower half of a byte for an even one, and the fifth bits in
//   one. A sixth less is read than of two bits, and decoding costs the same: 2.4 shifts and
//   selections and three look-ups by vpermb for three vectors. Multiplying 4096 x 4096 by one token
//   took a Zen 4 core 116 us from the third cache and 336 to 402 us from memory, two bits 119 and
//   365 to 604 us. A stream of five bits, spread by vpermb and vpmultishiftqb, took 167 us from the
//   cache: five shuffles keep the products waiting. Five trits in a byte would need two look-ups
//   of 128 entries for each of the five.
#pragma once

#include <cstdint>

#include "../cpu/memory.h"
#include "../matmul_int/stored.h"
#include "matmul_ternary.h"

namespace onnxq {

constexpr int kTritsOfByte = 5;
constexpr uint8_t kTritsHighest = 242;  // 3^5 - 1

// Arrays of onnxq.formats.TernaryFormat.
struct StoredTrits {
  int64_t rows, columns, group;
  int planes;
  const uint8_t* codes;  // [rows, planes * bytes()], each at most kTritsHighest
  const float* scales;   // [scale_rows, planes * groups()]
  int64_t scale_rows;    // 1, or rows

  int64_t groups() const { return (columns + group - 1) / group; }
  int64_t bytes() const { return (columns + kTritsOfByte - 1) / kTritsOfByte; }
  // The columns that kernels multiply with.
  int64_t all_columns() const { return planes == 1 ? columns : planes * groups() * group; }
  // The digits of a row, `all_columns` of them; those that fill up a plane are 1.
  void digits(int64_t row, uint8_t* to) const;
};

PackedIntegers as_integers(const StoredTrits& stored);

// Owns what a TritMatrix points to.
class PackedTrits {
 public:
  explicit PackedTrits(const StoredTrits& stored);
  const TritMatrix& matrix() const { return matrix_; }

 private:
  void pack_block(const StoredTrits& stored, int64_t block);

  TritMatrix matrix_;
  Memory memory_;
  uint8_t* codes_;
  float* scales_;
};

}  // namespace onnxq
