// Y = A W^T with W in integers of 1 to 8 bits and A rounded to int8, one scale for each token.
//
// A token a is stored as q = round(a * (127 / m)), ties to even, with m = max |a| (at least 2^-100)
// and its scale m / 127. Then y = scale * sum over groups g of s_g * (sum over its columns of
// q * (code - zero_g)), the inner sums being exact in int32. With ratios (two-level scales) s_g is
// scale of the row * ratio_g, and the sum over groups is exact too.
//
// Layout of the codes. 16 rows make a block, 32 columns of them a unit of 64 * bits bytes; the
// units of a block lie one behind the other. Each vector of 64 bytes stands for 4 columns of 16
// rows, row by row: what VNNI and the tiles of AMX multiply with four bytes of a token. A unit
// holds 8 such vectors, the bits of their codes in planes: of 4 bits (4 vectors, the lower half of
// a byte for an even one), then of 2 bits (2 vectors) and of 1 bit (1 vector), lowest bits of the
// code first. 8-bit codes are 8 vectors as they are. A group begins with a unit; where groups are
// wider than a unit, they are filled up to pairs of units, the tile of AMX. Codes are unsigned.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxq {

constexpr int64_t kIntRows = 16;        // rows of a block
constexpr int64_t kIntUnit = 32;        // columns of a unit
constexpr int64_t kIntVector = 64;      // bytes of a vector: 4 columns of a block
constexpr int kIntRatioBits = 4;        // the most bits that go with ratios
constexpr int64_t kIntTokens = 4;       // room for a multiple of so many tokens is needed
constexpr float kIntLeast = 0x1p-100f;  // the least m

// A weight as kernels read it. Pointers are aligned to 64 bytes.
struct IntMatrix {
  int64_t rows, columns;
  int64_t group, groups;      // columns that share a scale, how many times
  int64_t units, last_units;  // units of a group, and of the last one
  int bits;
  const uint8_t* codes;   // [blocks][units of all groups][64 * bits]
  const float* scales;    // [blocks][groups, or 1 with ratios][16]
  const uint8_t* ratios;  // [blocks][groups][16], or null
  const uint8_t* zeros;   // [blocks][groups][16]

  int64_t units_of(int64_t g) const { return g + 1 < groups ? units : last_units; }
  int64_t all_units() const { return (groups - 1) * units + last_units; }
  int64_t block_bytes() const { return all_units() * bits * kIntVector; }
};

// A token as it is multiplied: its codes with every group filled up with zeros, the sums of the
// codes of each group, and the scale. An odd number of cache lines: tokens of a power of two bytes
// would all meet in the same few lines of the cache.
struct IntToken {
  explicit IntToken(const IntMatrix& w)
      : sums(w.all_units() * kIntUnit),
        scale(sums + w.groups * static_cast<int64_t>(sizeof(int32_t))),
        size(((scale + 4 + kIntVector - 1) / kIntVector | 1) * kIntVector) {}

  int64_t sums, scale, size;  // offsets in bytes, and bytes of a token

  const int8_t* codes_of(const uint8_t* token) const {
    return reinterpret_cast<const int8_t*>(token);
  }
  const int32_t* sums_of(const uint8_t* token) const {
    return reinterpret_cast<const int32_t*>(token + sums);
  }
  float scale_of(const uint8_t* token) const {
    return *reinterpret_cast<const float*>(token + scale);
  }
};

struct IntKernels {
  const char* name;
  int64_t tile;  // tokens that `multiply` reads at once: room for a multiple of it is needed
  // Tokens [begin, end) of a [tokens, columns] as `prepared`, IntToken::size bytes for each.
  void (*prepare)(const IntMatrix& w, const float* a, int64_t begin, int64_t end,
                  uint8_t* prepared);
  // y[token * stride + row] for all tokens and rows [begin, end), begin being a multiple of 32.
  void (*multiply)(const IntMatrix& w, const uint8_t* prepared, int64_t tokens, float* y,
                   int64_t stride, int64_t begin, int64_t end);
};

const IntKernels& int_kernels();          // the best ones that may be used (see cpu/cpu.h)
const IntKernels& int_kernels_generic();  // the baseline of the architecture
const IntKernels* int_kernels_avx2();     // null where not compiled
const IntKernels* int_kernels_avx512();
const IntKernels* int_kernels_vnni();
const IntKernels* int_kernels_amx();
const IntKernels* int_kernels_dot();
const IntKernels* int_kernels_i8mm();

}  // namespace onnxq
