// Y = A W^T with W in codes of 2, 3 or 4 bits that are looked up in tables.
//
// Columns are taken 64 at a time, a unit. The codes of a row lie so that a unit is some bits of
// each of 64 bytes, a line, and a chunk of lines holds whole units:
//
//   4 bits  a line holds two units, in the low and the high half of its bytes
//   2 bits  a line holds four units, from the low bits up
//   3 bits  three lines hold eight units: units 2i and 2i + 1 lie in the low six bits of line i,
//           units 6 and 7 in the high two bits of all three
//
// With 8-bit activations each run of 128 columns of a token, a block, is rounded to int8 with a
// scale of its own: q = round(a * (127 / m)), ties to even, m = max |a|, at least 1e-30. Sums of
// products with int8 entries are exact within a block, or within a group where that is shorter.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxq {

constexpr int64_t kUnit = 64;          // columns
constexpr int64_t kUnitsPerBlock = 2;  // that share a scale of activations
constexpr int kTableSize = 16;         // entries of a table as kernels read it, repeated when fewer
constexpr int kLutRows = 4;            // rows done at once
constexpr int kLutTokens = 4;          // tokens done at once, at most
constexpr int64_t kPanelUnits = 16;    // units whose decoded rows stay in the first cache

// Where the codes of a row lie.
struct LutLayout {
  int bits;
  int64_t units() const { return bits == 4 ? 2 : bits == 3 ? 8 : 4; }  // of a chunk
  int64_t lines() const { return bits == 3 ? 3 : 1; }                  // of a whole chunk
  int64_t row_bytes(int64_t count) const;  // of so many units; a last chunk has what lines it needs
  // Puts the code of a column into a row that was zero there.
  void put(uint8_t* row, int64_t column, unsigned code) const;
};

// A weight as kernels read it. There are whole multiples of kLutRows rows, filled up with zeros.
struct LutMatrix {
  LutLayout layout;
  int64_t rows, columns;
  int64_t units;      // of a row, whole blocks
  int64_t row_bytes;  // of codes
  int64_t group;  // columns that share a scale: 16, 32 (a table then belongs to more), a multiple
                  // of a unit, or all
  bool grouped;   // whether there is more than one scale in a row
  const int32_t* groups;  // [units] the group of the first column of a unit
  const uint8_t* codes;   // [rows][row_bytes], at the start of lines of the cache
  const float* scales;    // [rows or 1][groups], 4 more behind the last
  // [rows or 1][groups or 1][kTableSize] entries + `offset` of the kernels; with float32
  // activations their numbers, for the entries are `values`.
  const uint8_t* tables;
  const float* values;
  ptrdiff_t scale_row, table_row, table_group;  // strides, 0 where shared; values as tables

  const uint8_t* row(int64_t index) const { return codes + index * row_bytes; }
  ptrdiff_t table_at(int64_t index, int64_t unit) const {
    return index * table_row + groups[unit] * table_group;
  }
  const float* scales_of(int64_t index, int64_t unit) const {
    return scales + index * scale_row + groups[unit];
  }
};

// A token of 8-bit activations in memory: codes, starts, scales. An odd number of lines: tokens of
// a power of two bytes would all meet in the same few lines of the cache.
struct LutToken {
  explicit LutToken(const LutMatrix& w)
      : columns(w.columns),
        blocks(w.units / kUnitsPerBlock),
        starts_in_block(w.grouped ? kUnitsPerBlock : 1),
        start(w.units * kUnit),
        scale(start + blocks * starts_in_block * kUnit),
        size(((scale + blocks * int64_t{sizeof(float)} + kUnit - 1) / kUnit | 1) * kUnit) {}

  int64_t columns, blocks;
  int64_t starts_in_block;     // one, or one for each unit
  int64_t start, scale, size;  // offsets in bytes, and bytes of a token

  const int8_t* codes_of(const uint8_t* token) const {
    return reinterpret_cast<const int8_t*>(token);
  }
  // What sums of four products begin with: -offset times the sum of their activations.
  const int32_t* starts_of(const uint8_t* token) const {
    return reinterpret_cast<const int32_t*>(token + start);
  }
  const float* scales_of(const uint8_t* token) const {
    return reinterpret_cast<const float*>(token + scale);
  }
};

// Results of a tile are sums[row * kLutTokens + token]: scales of groups are in them, those of
// whole rows are not. Kernels allocate nothing and start no threads.
struct LutKernels {
  const char* name;
  int offset;  // added to the entries of tables

  // Rounds a token.
  void (*round)(const LutToken& layout, const float* a, uint8_t* token);
  // Entries of units [first, last) of a row, a byte each; `first` begins a chunk.
  void (*decode)(const LutMatrix& w, int64_t row, int64_t first, int64_t last, uint8_t* out);
  // Rows of a decoded panel, [kLutRows][kPanelUnits * kUnit], units [first, last), with `count`
  // tokens.
  void (*tile)(const LutMatrix& w, const LutToken& layout, const uint8_t* panel, int64_t row,
               int64_t first, int64_t last, const uint8_t* tokens, int count, float* sums);
  // kLutRows whole rows with one token, decoded in registers; null where there is no such kernel.
  void (*one)(const LutMatrix& w, const LutToken& layout, int64_t row, const uint8_t* token,
              float* sums);
  // The weights of units [first, last) of a row, from the numbers of their entries.
  void (*expand)(const LutMatrix& w, int64_t row, int64_t first, int64_t last,
                 const uint8_t* numbers, float* out);
  // Rows `stride` apart with `count` tokens of `depth` columns, in float32.
  void (*tile_float)(const float* rows, int64_t stride, const float* a, int64_t a_stride, int count,
                     int64_t depth, float* sums);
};

const LutKernels& lut_kernels();          // the best ones that may be used (see cpu/cpu.h)
const LutKernels& lut_kernels_generic();  // the baseline of the architecture
const LutKernels* lut_kernels_avx2();     // null where not compiled
const LutKernels* lut_kernels_avx512();
const LutKernels* lut_kernels_vnni();
const LutKernels* lut_kernels_dot();

// y[token * stride + row] for rows [begin, end), begin a multiple of kLutRows; `tokens` are rounded
// ones, or of float32.
void lut_multiply(const LutMatrix& w, const LutKernels& kernels, const uint8_t* prepared,
                  int64_t tokens, float* y, int64_t stride, int64_t begin, int64_t end);
void lut_multiply_float(const LutMatrix& w, const LutKernels& kernels, const float* a,
                        int64_t tokens, float* y, int64_t stride, int64_t begin, int64_t end);

}  // namespace onnxq
