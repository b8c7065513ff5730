#include "trits.h"

#include <algorithm>
#include <array>

namespace onnxq {
namespace {

constexpr int kBits = 2;
constexpr uint8_t kZero = 1, kZeros = 0x55;  // the code of 0, and four of them

// The digits of every byte.
std::array<std::array<uint8_t, kTritsOfByte>, 256> digits_of_bytes() {
  std::array<std::array<uint8_t, kTritsOfByte>, 256> digits{};
  for (int byte = 0; byte < 256; ++byte) {
    int rest = byte;
    for (uint8_t& digit : digits[static_cast<size_t>(byte)]) {
      digit = static_cast<uint8_t>(rest % 3);
      rest /= 3;
    }
  }
  return digits;
}

// `columns` trits as a stream of two bits each, into a row of kZeros from the code `first` on.
void put_plane(const uint8_t* bytes, int64_t columns, uint8_t* row, int64_t first) {
  static const std::array<std::array<uint8_t, kTritsOfByte>, 256> kDigits = digits_of_bytes();
  for (int64_t at = 0; at < columns; ++at) {
    const uint8_t digit = kDigits[bytes[at / kTritsOfByte]][static_cast<size_t>(at % kTritsOfByte)];
    const int64_t place = first + at;
    row[place / 4] = static_cast<uint8_t>(row[place / 4] ^ (digit ^ kZero) << 2 * (place % 4));
  }
}

}  // namespace

PackedIntegers packed_trits(const StoredTrits& stored) {
  const int64_t columns = stored.all_columns(), groups = stored.planes * stored.groups();
  StoredIntegers integers{};
  integers.rows = stored.rows;
  integers.columns = columns;
  integers.group = stored.group;
  integers.bits = kBits;
  integers.is_signed = false;
  const int64_t row_bytes = integers.bytes_of(columns);
  std::vector<uint8_t> codes(static_cast<size_t>(stored.rows * row_bytes), kZeros);
  for (int64_t row = 0; row < stored.rows; ++row) {
    for (int64_t plane = 0; plane < stored.planes; ++plane) {
      put_plane(stored.codes + (row * stored.planes + plane) * stored.bytes(), stored.columns,
                codes.data() + row * row_bytes, plane * stored.groups() * stored.group);
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

}  // namespace onnxq
