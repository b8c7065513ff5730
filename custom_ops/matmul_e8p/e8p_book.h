// The points of E8P and of the one-bit book of E8, as onnxq/numerics/e8p.py numbers them.
#pragma once

#include <cstdint>

namespace onnxq {

constexpr int kE8pWidth = 8;  // weights of a code

// Points are whole numbers: quarters of the lattice, times the gain of the pattern. Patterns of
// squared length 10 and 12 are long, all others short. `unit` of them are 1 of the lattice.
struct E8pGains {
  int shorter, longer;
  float unit;
};

constexpr E8pGains kE8pGains = {7, 8, 28.0f};  // of two bits

// A pattern of E8P has the magnitudes (1 + 2 [three] + 2 [five]) / 2, its masks having a bit for
// each of the eight weights; five lies within three.
struct E8pBook {
  uint8_t threes[256], fives[256];  // of a pattern
  uint8_t odd[256];                 // whether a pattern takes an odd number of minus signs
  uint8_t longs[256];               // whether a pattern is long
  uint8_t pattern_of_threes[256];   // of a mask of a pattern without five
  int8_t bit[256][kE8pWidth];       // the one-bit book, in halves

  // The eight weights of a code, as whole numbers.
  void weights(uint16_t code, const E8pGains& gains, int8_t* weights) const {
    const int pattern = code >> 8, signs = full_signs(code);
    const int shift = code & 0x80 ? 1 : -1;
    const int gain = longs[pattern] ? gains.longer : gains.shorter;
    for (int place = 0; place < kE8pWidth; ++place) {
      const int three = threes[pattern] >> place & 1, five = fives[pattern] >> place & 1;
      const int magnitude = 2 + 4 * three + 4 * five;
      weights[place] =
          static_cast<int8_t>(gain * ((signs >> place & 1 ? -magnitude : magnitude) + shift));
    }
  }

  // The seven signs of a code, and the eighth that follows from the pattern.
  uint8_t full_signs(uint16_t code) const {
    const unsigned seven = code & 0x7f;
    unsigned parity = seven ^ seven >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return static_cast<uint8_t>(seven | ((parity ^ odd[code >> 8]) & 1) << 7);
  }
};

const E8pBook& e8p_book();

}  // namespace onnxq
