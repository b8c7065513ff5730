// Y = A W^T with W in points of E8P at 2, 3 or 4 bits (see onnxq/numerics/e8p.py), and A rounded to
// int8, one scale for each token, as by matmul_int.h; or A as it is.
//
// A weight is a whole number within int8 times the scale of its row, so that with rounded tokens
// y = scale of the token * scale of the row * (sum of whole products, exact in int32), the same on
// every instruction set.
//
// Layout of the codes. 8 rows make a block, 64 columns of them a unit of 64 * bits bytes; the units
// of a block lie one behind the other. A unit has the codes of 8 rows and 8 runs of 8 columns, row
// by row, in planes of 64 bytes: signs and shifts, patterns, and then those of the second stage,
// one plane at three bits and two at four. What is beyond the last row or column is zeros.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../matmul_int/matmul_int.h"
#include "e8p_book.h"

namespace onnxq {

constexpr int64_t kE8pRows = 8;        // rows of a block
constexpr int64_t kE8pColumns = 64;    // columns of a unit, and bytes of a plane
constexpr int64_t kE8pMost = 1 << 17;  // columns whose products fit int32

// A weight as kernels read it. Pointers are aligned to 64 bytes.
struct E8pMatrix {
  int64_t rows, columns;
  int bits;
  const uint8_t* codes;  // [blocks][units][bits][64]
  const float* scales;   // [blocks][8], of a whole number

  int64_t units() const { return (columns + kE8pColumns - 1) / kE8pColumns; }
  int64_t unit_bytes() const { return bits * kE8pColumns; }
  int64_t block_bytes() const { return units() * unit_bytes(); }
};

// A token rounded to int8, filled up with zeros to whole units. Behind it, for vnni, are sums of 8
// codes each, as 8 * coarse + fine.
struct E8pToken : IntToken {
  explicit E8pToken(const E8pMatrix& w)
      : IntToken(tokens_of(w)),
        coarse(size),
        fine(coarse + w.units() * 8),
        stride(((fine + w.units() * 8 + kIntVector - 1) / kIntVector | 1) * kIntVector) {}

  int64_t coarse, fine, stride;  // offsets in bytes, and bytes of a token with its sums

  // How MatMulInt rounds such tokens: one group of all columns.
  static IntMatrix tokens_of(const E8pMatrix& w) {
    IntMatrix tokens{};
    tokens.rows = w.rows;
    tokens.columns = tokens.group = w.columns;
    tokens.groups = 1;
    tokens.units = tokens.last_units = w.units() * (kE8pColumns / kIntUnit);
    return tokens;
  }
};

// Bytes of a token in float32, filled up with zeros to whole units.
inline int64_t e8p_float_bytes(const E8pMatrix& w) {
  return (w.units() * (kE8pColumns * 4 / kIntVector) | 1) * kIntVector;
}

// One of the two ways: tokens rounded to int8, or as they are.
struct E8pWay {
  // Tokens [begin, end) of a [tokens, columns] as `prepared`, E8pToken::stride or e8p_float_bytes
  // for each.
  void (*prepare)(const E8pMatrix& w, const float* a, int64_t begin, int64_t end,
                  uint8_t* prepared);
  // y[token * stride + row] for all tokens and rows [begin, end), begin being a multiple of 8.
  void (*multiply)(const E8pMatrix& w, const uint8_t* prepared, int64_t tokens, float* y,
                   int64_t stride, int64_t begin, int64_t end);
};

struct E8pKernels {
  const char* name;
  E8pWay rounded, plain;
};

const E8pKernels& e8p_kernels();          // the best ones that may be used (see cpu/cpu.h)
const E8pKernels& e8p_kernels_generic();  // the baseline of the architecture
const E8pKernels* e8p_kernels_avx2();     // null where not compiled
const E8pKernels* e8p_kernels_avx512();
const E8pKernels* e8p_kernels_vnni();

}  // namespace onnxq
