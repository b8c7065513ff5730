#include "stored.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace onnxq {
namespace {

constexpr int64_t kRowUnits = kIntUnit / 4;  // vectors of a unit

int64_t lines(int64_t bytes) { return (bytes + kIntVector - 1) / kIntVector * kIntVector; }

int bits_at(const uint8_t* stream, int64_t index, int bits) {
  const int64_t place = index * bits, shift = place % 8;
  int word = stream[place / 8];
  if (shift + bits > 8) word |= stream[place / 8 + 1] << 8;
  return word >> shift & ((1 << bits) - 1);
}

// Units of `columns` columns: pairs of them where `is_paired`.
int64_t units_for(int64_t columns, bool is_paired) {
  const int64_t units = (columns + kIntUnit - 1) / kIntUnit;
  return is_paired ? (units + 1) / 2 * 2 : units;
}

// Vector i of a unit, 64 codes, into the planes of the unit.
void put_vector(uint8_t* unit, int bits, int64_t i, const uint8_t* codes) {
  const auto put = [&](int64_t plane, int64_t from, int64_t count, int64_t to) {
    for (int64_t at = 0; at < kIntVector; ++at) {
      const int part = codes[at] >> from & ((1 << count) - 1);
      unit[plane * kIntVector + at] |= static_cast<uint8_t>(part << to);
    }
  };
  if (bits == 8) return put(i, 0, 8, 0);
  const int64_t twos = bits & 4, ones = bits & 6;
  if (bits & 4) put(i / 2, 0, 4, 4 * (i % 2));
  if (bits & 2) put(twos + i / 4, twos, 2, 2 * (i % 4));
  if (bits & 1) put(ones, ones, 1, i);
}

}  // namespace

int StoredIntegers::code(int64_t row, int64_t column) const {
  const int raw = bits_at(codes + row * bytes_of(columns), column, bits);
  return is_signed ? raw ^ 1 << (bits - 1) : raw;
}

int StoredIntegers::zero(int64_t row, int64_t g) const {
  if (zeros == nullptr) return is_signed ? 1 << (bits - 1) : 0;
  return bits_at(zeros + (zero_rows == 1 ? 0 : row) * bytes_of(groups()), g, bits);
}

PackedIntegers::PackedIntegers(const StoredIntegers& stored) : matrix_{} {
  IntMatrix& w = matrix_;
  w.rows = stored.rows;
  w.columns = stored.columns;
  w.group = std::min(stored.group, stored.columns);
  w.groups = stored.groups();
  const bool is_paired = w.group > kIntUnit;
  w.units = units_for(w.group, is_paired);
  w.last_units = units_for(w.columns - (w.groups - 1) * w.group, is_paired);
  w.bits = stored.bits;
  const int64_t blocks = (w.rows + kIntRows - 1) / kIntRows;
  const int64_t sides = blocks * w.groups * kIntRows;
  const int64_t codes = blocks * w.block_bytes();
  const int64_t scales = stored.ratios ? blocks * kIntRows : sides;
  const int64_t sizes[] = {codes, lines(scales * static_cast<int64_t>(sizeof(float))),
                           stored.ratios ? lines(sides) : 0, lines(sides)};
  codes_ = memory_.zeros<uint8_t>(sizes[0] + sizes[1] + sizes[2] + sizes[3]);
  scales_ = reinterpret_cast<float*>(codes_ + sizes[0]);
  ratios_ = codes_ + sizes[0] + sizes[1];
  zeros_ = ratios_ + sizes[2];
  for (int64_t block = 0; block < blocks; ++block) pack_block(stored, block);
  w.codes = codes_;
  w.scales = scales_;
  w.ratios = stored.ratios ? ratios_ : nullptr;
  w.zeros = zeros_;
}

void PackedIntegers::pack_block(const StoredIntegers& stored, int64_t block) {
  const IntMatrix& w = matrix_;
  const int64_t first = block * kIntRows, rows = std::min(kIntRows, w.rows - first);
  const int highest = (1 << w.bits) - 1;
  uint8_t* unit = codes_ + block * w.block_bytes();
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t begin = g * w.group, end = std::min(begin + w.group, w.columns);
    int flips[kIntRows] = {};  // negative ratios: (code - zero) * -r = (zero - code) * r
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t side = (block * w.groups + g) * kIntRows + row;
      int zero = stored.zero(first + row, g);
      if (stored.ratios != nullptr) {
        const int ratio = stored.ratios[(first + row) * w.groups + g];
        flips[row] = ratio < 0 ? highest : 0;
        ratios_[side] = static_cast<uint8_t>(std::abs(ratio));
        zero ^= flips[row];
      }
      zeros_[side] = static_cast<uint8_t>(zero);
      const int64_t scale_row = stored.scale_rows == 1 ? 0 : first + row;
      const float* scale = stored.scales + scale_row * stored.scale_groups;
      if (stored.ratios == nullptr) {
        scales_[side] = scale[stored.scale_groups == 1 ? 0 : g];
      } else {
        scales_[first + row] = scale[0];
      }
    }
    for (int64_t u = 0; u < w.units_of(g); ++u, unit += w.bits * kIntVector) {
      for (int64_t i = 0; i < kRowUnits; ++i) {
        uint8_t codes[kIntVector] = {};
        for (int64_t at = 0; at < 4 * rows; ++at) {
          const int64_t row = at / 4, column = begin + u * kIntUnit + 4 * i + at % 4;
          if (column >= end) continue;
          codes[at] = static_cast<uint8_t>(stored.code(first + row, column) ^ flips[row]);
        }
        put_vector(unit, w.bits, i, codes);
      }
    }
  }
}

}  // namespace onnxq
