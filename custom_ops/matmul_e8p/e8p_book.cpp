#include "e8p_book.h"

namespace onnxq {
namespace {

int count(unsigned mask) { return __builtin_popcount(mask); }

// Whether 3/2 at the places of `mask` and 1/2 elsewhere is a pattern: squared length at most 10, or
// one of the 29 of squared length 12.
bool is_pattern(unsigned mask) {
  if (count(mask) <= 4) return true;
  if (count(mask) != 5) return false;
  const unsigned ones = ~mask & 0xff;
  return count(ones & 0xf0) % 2 == 0 || ones == 0x8c;
}

E8pBook make_book() {
  E8pBook book{};
  for (int five = 0; five < kE8pWidth; ++five) {
    for (int three = 0; three < kE8pWidth; ++three) {
      book.fives[five * 8 + three] = static_cast<uint8_t>(1 << five);
      book.threes[five * 8 + three] = static_cast<uint8_t>(1 << five | 1 << three);
    }
  }
  int pattern = 64;
  for (unsigned mask = 0; mask < 256; ++mask) {
    if (!is_pattern(mask)) continue;
    book.threes[pattern] = static_cast<uint8_t>(mask);
    book.pattern_of_threes[mask] = static_cast<uint8_t>(pattern++);
  }
  for (int index = 0; index < 256; ++index) {
    const int fives = count(book.fives[index]), threes = count(book.threes[index]) - fives;
    book.longs[index] = 8 * threes + 24 * fives + 8 >= 40 ? 1 : 0;  // four squared lengths
    book.odd[index] = static_cast<uint8_t>(threes % 2);
  }
  for (unsigned code = 0; code < 128; ++code) {
    const unsigned signs = code | static_cast<unsigned>(count(code) % 2) << 7;
    for (int place = 0; place < kE8pWidth; ++place) {
      book.bit[code][place] = signs >> place & 1 ? -1 : 1;
    }
  }
  int code = 128;
  for (int first = 0; first < kE8pWidth; ++first) {
    for (int second = first + 1; second < kE8pWidth; ++second) {
      for (int signs = 0; signs < 4; ++signs, ++code) {
        book.bit[code][first] = signs & 1 ? -2 : 2;
        book.bit[code][second] = signs & 2 ? -2 : 2;
      }
    }
  }
  for (int place = 0; place < kE8pWidth; ++place) {
    book.bit[241 + place][place] = 4;
    if (place < 7) book.bit[249 + place][place] = -4;
  }
  return book;
}

}  // namespace

const E8pBook& e8p_book() {
  static const E8pBook book = make_book();
  return book;
}

}  // namespace onnxq
