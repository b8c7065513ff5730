#include "trits.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <vector>

namespace onnxq {
namespace {

constexpr int kBits = 2;
constexpr uint8_t kZero = 1, kZeros = 0x55;  // the digit of 0, and four of them

// The digits of every byte.
using Digits = std::array<uint8_t, kTritsOfByte>;
std::array<Digits, 256> digits_of_bytes() {
  std::array<Digits, 256> digits{};
  for (int byte = 0; byte < 256; ++byte) {
    int rest = byte;
    for (uint8_t& digit : digits[static_cast<size_t>(byte)]) {
      digit = static_cast<uint8_t>(rest % 3);
      rest /= 3;
    }
  }
  return digits;
}

int64_t lines(int64_t bytes) { return (bytes + kIntVector - 1) / kIntVector * kIntVector; }

int64_t units_for(int64_t columns) { return (columns + kIntUnit - 1) / kIntUnit; }

}  // namespace

void StoredTrits::digits(int64_t row, uint8_t* to) const {
  static const std::array<Digits, 256> kDigits = digits_of_bytes();
  const int64_t across = all_columns() / planes;
  for (int plane = 0; plane < planes; ++plane, to += across) {
    const uint8_t* from = codes + (row * planes + plane) * bytes();
    for (int64_t at = 0; at < columns; at += kTritsOfByte) {
      const Digits& five = kDigits[*from++];
      std::copy_n(five.begin(), std::min<int64_t>(kTritsOfByte, columns - at), to + at);
    }
    std::fill(to + columns, to + across, kZero);
  }
}

PackedIntegers as_integers(const StoredTrits& stored) {
  const int64_t columns = stored.all_columns(), groups = stored.planes * stored.groups();
  StoredIntegers integers{};
  integers.rows = stored.rows;
  integers.columns = columns;
  integers.group = stored.group;
  integers.bits = kBits;
  integers.is_signed = false;
  const int64_t row_bytes = integers.bytes_of(columns);
  std::vector<uint8_t> codes(static_cast<size_t>(stored.rows * row_bytes), uint8_t{0});
  std::vector<uint8_t> digits(static_cast<size_t>(columns));
  for (int64_t row = 0; row < stored.rows; ++row) {
    stored.digits(row, digits.data());
    uint8_t* to = codes.data() + row * row_bytes;
    for (int64_t at = 0; at < columns; ++at) {
      to[at / 4] =
          static_cast<uint8_t>(to[at / 4] | digits[static_cast<size_t>(at)] << 2 * (at % 4));
    }
  }
  const std::vector<uint8_t> zeros(static_cast<size_t>(integers.bytes_of(groups)), kZeros);
  integers.codes = codes.data();
  integers.scales = stored.scales;
  integers.scale_rows = stored.scale_rows;
  integers.scale_groups = groups;
  integers.zeros = zeros.data();
  integers.zero_rows = 1;
  return PackedIntegers(integers);
}

PackedTrits::PackedTrits(const StoredTrits& stored) : matrix_{} {
  IntMatrix& w = matrix_.tokens;
  w.rows = stored.rows;
  w.columns = stored.all_columns();
  w.group = stored.group;
  w.groups = stored.planes * stored.groups();
  w.units = units_for(w.group);
  w.last_units = units_for(w.columns - (w.groups - 1) * w.group);
  w.bits = kBits;
  const int64_t blocks = (w.rows + kTritRows - 1) / kTritRows;
  const int64_t codes = blocks * w.all_units() * kTritUnit;
  const int64_t scales = lines(blocks * w.groups * kTritRows * static_cast<int64_t>(sizeof(float)));
  codes_ = memory_.zeros<uint8_t>(codes + scales);
  scales_ = reinterpret_cast<float*>(codes_ + codes);
  matrix_.codes = codes_;
  matrix_.scales = scales_;
  for (int64_t block = 0; block < blocks; ++block) pack_block(stored, block);
}

void PackedTrits::pack_block(const StoredTrits& stored, int64_t block) {
  constexpr int kPowers[] = {1, 3, 9};  // of rows 16 apart
  const IntMatrix& w = matrix_.tokens;
  const int64_t first = block * kTritRows, rows = std::min(kTritRows, w.rows - first);
  std::vector<uint8_t> digits(static_cast<size_t>(w.columns));
  // The numbers of all triples of vectors, 4 columns each.
  std::vector<uint8_t> numbers(static_cast<size_t>(w.all_units() * (kIntUnit / 4) * kIntVector));
  for (int64_t row = 0; row < rows; ++row) {
    stored.digits(first + row, digits.data());
    const int64_t lane = row % kIntRows * 4;
    const uint8_t* digit = digits.data();
    for (int64_t g = 0; g < w.groups; ++g) {
      const int64_t count = std::min(w.group, w.columns - g * w.group);
      for (int64_t at = 0; at < count; ++at) {
        const int64_t column = g * w.units * kIntUnit + at;
        uint8_t& number = numbers[static_cast<size_t>(column / 4 * kIntVector + lane + column % 4)];
        number = static_cast<uint8_t>(number + kPowers[row / kIntRows] * *digit++);
      }
      scales_[(block * w.groups + g) * kTritRows + row] =
          stored.scales[(stored.scale_rows == 1 ? 0 : first + row) * w.groups + g];
    }
  }
  uint8_t* unit = codes_ + block * w.all_units() * kTritUnit;
  const uint8_t* number = numbers.data();
  for (int64_t u = 0; u < w.all_units(); ++u, unit += kTritUnit) {
    for (int64_t i = 0; i < kIntUnit / 4; ++i) {
      for (int64_t at = 0; at < kIntVector; ++at, ++number) {
        uint8_t &low = unit[i / 2 * kIntVector + at], &fifth = unit[kTritFifth + at];
        low = static_cast<uint8_t>(low | (*number & 0x0f) << (4 * (i % 2)));
        fifth = static_cast<uint8_t>(fifth | *number >> 4 << i);
      }
    }
  }
}

}  // namespace onnxq
