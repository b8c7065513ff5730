#include "e8p_decode.h"

#include <cstring>

namespace onnxq {
namespace {

constexpr uint64_t kOnes = 0x0101010101010101u, kTops = 0x8080808080808080u;

uint64_t word_of(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

void fill_stage(const E8pBook& book, int shorter, int longer, E8pStage& stage) {
  for (int pattern = 0; pattern < 256; ++pattern) {
    const int gain = book.longs[pattern] ? longer : shorter;
    uint8_t bytes[kE8pWidth];
    for (int place = 0; place < kE8pWidth; ++place) {
      const int three = book.threes[pattern] >> place & 1, five = book.fives[pattern] >> place & 1;
      bytes[place] = static_cast<uint8_t>(gain * (1 + 4 * three + 4 * five));
    }
    stage.least[pattern] = word_of(bytes);
    stage.twice[pattern] = kOnes * static_cast<uint64_t>(2 * gain);
  }
}

// A point of the one-bit book as 2 and -2 at two places: the same one twice for 4 and -4, and for
// the point of zeros.
uint8_t pair_of(const int8_t* point) {
  int places[2] = {0, 0}, found = 0;
  for (int place = 0; place < kE8pWidth; ++place) {
    for (int left = point[place]; left != 0; left += left < 0 ? 2 : -2) places[found++] = place;
  }
  const bool is_zero = found == 0;
  const bool first = point[places[0]] < 0, second = is_zero || point[places[1]] < 0;
  return static_cast<uint8_t>(places[0] | places[1] << 3 | first << 6 | second << 7);
}

E8pTables make_tables() {
  const E8pBook& book = e8p_book();
  E8pTables tables{};
  for (unsigned signs = 0; signs < 256; ++signs) {
    const unsigned seven = signs & 0x7f;
    const unsigned eighth = (static_cast<unsigned>(__builtin_popcount(seven)) & 1) << 7;
    const unsigned all = seven | (eighth ^ (signs & 0x80));
    uint8_t bytes[kE8pWidth];
    for (int place = 0; place < kE8pWidth; ++place) bytes[place] = all >> place & 1 ? 255 : 0;
    tables.minus[signs] = word_of(bytes);
    tables.turned[signs] = book.odd[signs] ? 0x80 : 0;
    std::memcpy(bytes, book.bit[signs], sizeof(bytes));
    tables.points[signs] = word_of(bytes);
    if (signs >= 128) tables.pairs[signs - 128] = pair_of(book.bit[signs]);
  }
  fill_stage(book, kE8pGains.shorter, kE8pGains.longer, tables.both);
  fill_stage(book, 1, 1, tables.ones);
  fill_stage(book, 7, 7, tables.sevens);
  fill_stage(book, 2, 2, tables.twos);
  return tables;
}

uint64_t lattice(const E8pTables& tables, const E8pStage& stage, uint8_t signs, uint8_t pattern) {
  const uint64_t minus = tables.minus[(signs & 0x7f) | tables.turned[pattern]];
  const uint64_t agree = signs & 0x80 ? ~minus : minus;
  const uint64_t magnitude = stage.least[pattern] + (agree & stage.twice[pattern]);
  return (magnitude ^ minus) + (minus & kOnes);  // the complement, and 1, where there is a minus
}

// Byte by byte, modulo 256.
uint64_t add_bytes(uint64_t a, uint64_t b) {
  return ((a & ~kTops) + (b & ~kTops)) ^ ((a ^ b) & kTops);
}

template <int kBits>
void decode(const uint8_t* unit, uint8_t flip, uint8_t* numbers) {
  const E8pTables& tables = e8p_tables();
  const E8pStage& first = kBits == 2 ? tables.both : kBits == 3 ? tables.ones : tables.sevens;
  const uint64_t flips = kOnes * flip;
  for (int64_t at = 0; at < kE8pColumns; ++at, ++unit, numbers += kE8pWidth) {
    uint64_t word = lattice(tables, first, unit[0], unit[kE8pColumns]);
    if (kBits == 3) word = add_bytes(word, tables.points[unit[2 * kE8pColumns]]);
    if (kBits == 4) {
      const uint8_t *signs = unit + 2 * kE8pColumns, *pattern = unit + 3 * kE8pColumns;
      word = add_bytes(word, lattice(tables, tables.twos, *signs, *pattern));
    }
    word ^= flips;
    std::memcpy(numbers, &word, sizeof(word));
  }
}

}  // namespace

const E8pTables& e8p_tables() {
  static const E8pTables tables = make_tables();
  return tables;
}

void e8p_decode(const uint8_t* unit, int bits, uint8_t flip, uint8_t* numbers) {
  if (bits == 2) {
    decode<2>(unit, flip, numbers);
  } else if (bits == 3) {
    decode<3>(unit, flip, numbers);
  } else {
    decode<4>(unit, flip, numbers);
  }
}

}  // namespace onnxq
