#include "lut_packed.h"

#include <algorithm>
#include <vector>

#include "../hadamard/hadamard.h"

namespace onnxq {
namespace {

constexpr int64_t kGroupsRead = 4;  // of a unit: groups may be as small as 16 columns

std::vector<float> widened(const uint16_t* halves, int64_t count) {
  std::vector<float> wide(static_cast<size_t>(count));
  hadamard_kernels().widen(halves, wide.data(), count);
  return wide;
}

}  // namespace

unsigned StoredLut::code(int64_t row, int64_t column) const {
  const uint8_t* stream = codes + row * row_bytes() + column * bits / 8;
  const int64_t shift = column * bits % 8;
  unsigned word = stream[0];
  if (shift + bits > 8) word |= unsigned{stream[1]} << 8;
  return word >> shift & ((1u << bits) - 1);
}

PackedLut::PackedLut(const StoredLut& stored, bool rounds, int offset) {
  LutMatrix& w = matrix_;
  w.layout = {std::max(2, stored.bits)};
  w.rows = stored.rows;
  w.columns = stored.columns;
  constexpr int64_t kBlock = kUnit * kUnitsPerBlock;
  w.units = (w.columns + kBlock - 1) / kBlock * kUnitsPerBlock;
  w.row_bytes = w.layout.row_bytes(w.units);
  w.grouped = std::max(stored.lut_groups, stored.scale_groups) > 1;
  w.group = w.grouped ? stored.group : w.units * kUnit;
  int32_t* const groups = groups_.zeros<int32_t>(w.units);
  for (int64_t unit = 0; unit < w.units; ++unit) {
    groups[unit] = static_cast<int32_t>(unit * kUnit / w.group);
  }
  w.groups = groups;
  if (w.grouped) padded_groups_ = w.groups[w.units - 1] + kGroupsRead;
  pack_codes(stored);
  pack_scales(stored);
  pack_tables(stored, rounds, offset);
}

void PackedLut::pack_codes(const StoredLut& stored) {
  LutMatrix& w = matrix_;
  const int64_t rows = (w.rows + kLutRows - 1) / kLutRows * kLutRows;
  uint8_t* const codes = codes_.zeros<uint8_t>(rows * w.row_bytes);
  w.codes = codes;
  for (int64_t row = 0; row < w.rows; ++row) {
    uint8_t* to = codes + row * w.row_bytes;
    for (int64_t column = 0; column < w.columns; ++column) {
      w.layout.put(to, column, stored.code(row, column));
    }
  }
}

void PackedLut::pack_scales(const StoredLut& stored) {
  LutMatrix& w = matrix_;
  const std::vector<float> wide = widened(stored.scales, stored.scale_rows * stored.scale_groups);
  w.scale_row = stored.scale_rows > 1 ? padded_groups_ : 0;
  // Rows that fill up a tile have scales of 0.
  float* const scales =
      scales_.zeros<float>((stored.scale_rows + kLutRows) * padded_groups_ + kGroupsRead);
  w.scales = scales;
  const int64_t groups = w.grouped ? stored.groups() : 1;
  for (int64_t row = 0; row < stored.scale_rows; ++row) {
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t at = row * stored.scale_groups + (stored.scale_groups > 1 ? group : 0);
      scales[row * padded_groups_ + group] = wide[static_cast<size_t>(at)];
    }
  }
}

void PackedLut::pack_tables(const StoredLut& stored, bool rounds, int offset) {
  LutMatrix& w = matrix_;
  const int64_t count = int64_t{1} << stored.bits;
  const int64_t groups = stored.lut_groups > 1 ? padded_groups_ : 1;
  w.table_group = stored.lut_groups > 1 ? kTableSize : 0;
  w.table_row = stored.lut_rows > 1 ? groups * kTableSize : 0;
  const int64_t all = (stored.lut_rows + kLutRows) * groups * kTableSize;
  uint8_t* const tables = tables_.zeros<uint8_t>(all);
  w.tables = tables;
  float* values = nullptr;
  if (!rounds) {
    for (int64_t at = 0; at < all; ++at) tables[at] = static_cast<uint8_t>(at % count);
    values = values_.zeros<float>(all);
    w.values = values;
  }
  std::vector<float> wide;
  const int64_t entries = stored.lut_rows * stored.lut_groups * count;
  if (stored.halves != nullptr) wide = widened(stored.halves, entries);
  for (int64_t row = 0; row < stored.lut_rows; ++row) {
    for (int64_t group = 0; group < stored.lut_groups; ++group) {
      const int64_t from = (row * stored.lut_groups + group) * count;
      const int64_t to = (row * groups + group) * kTableSize;
      for (int64_t at = 0; at < kTableSize; ++at) {
        const int64_t entry = from + at % count;
        if (rounds) {
          tables[to + at] = static_cast<uint8_t>(stored.entries[entry] + offset);
        } else {
          values[to + at] = stored.halves ? wide[static_cast<size_t>(entry)]
                                          : static_cast<float>(stored.entries[entry]);
        }
      }
    }
  }
}

}  // namespace onnxq
