// Codes of a unit as whole numbers in int8: eight of them at a time, in one register of 64 bits.
#pragma once

#include "matmul_e8p.h"

namespace onnxq {

// Tables of bytes, eight in a word. A weight is gain * (sign * magnitude + shift), whose magnitude
// is at least gain: with `least` = gain * (magnitude - 1), it is `least`, and 2 * gain more where
// sign and shift agree. Nothing is carried from byte to byte.
struct E8pStage {
  uint64_t least[256];  // of a pattern
  uint64_t twice[256];  // of a pattern, 2 * gain
};

struct E8pTables {
  uint64_t minus[256];   // 255 at minus signs, of seven signs and whether the eighth is turned
  uint8_t turned[256];   // of a pattern: 128 where it turns the eighth sign
  uint64_t points[256];  // the one-bit book, whose numbers are in halves
  uint8_t pairs[128];    // its upper half as two places, each +2 or -2: in bits 0 and 3 where they
                         // are, in bits 6 and 7 whether there is a minus
  E8pStage both, ones, sevens, twos;  // by gains: 7 or 8 (two bits), 1, 7, 2
};

const E8pTables& e8p_tables();

// Columns [0, 64) of 8 rows: numbers[row * 64 + column], each exclusive-or `flip`.
void e8p_decode(const uint8_t* unit, int bits, uint8_t flip, uint8_t* numbers);

}  // namespace onnxq
