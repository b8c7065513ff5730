// Codes out of the planes of a unit (see matmul_int.h), for vectors `V` of 64 bytes or of 32 of
// them.
#pragma once

#include "matmul_int.h"

namespace onnxq {
namespace {

// Vector i of a unit: its codes, one byte each.
template <class V, int kBits, int i>
[[gnu::always_inline]] inline typename V::Codes decoded(const uint8_t* unit) {
  if constexpr (kBits == 8) {
    return V::load(unit + kIntVector * i);
  } else {
    constexpr int kTwos = kBits & 4, kOnes = kBits & 6;  // where these bits of a code begin
    constexpr int kFour = 0x0f, kTwo = 3 << kTwos, kOne = 1 << kOnes;
    typename V::Codes codes;
    if constexpr ((kBits & 4) != 0) {
      codes = V::template bits<4 * (i % 2), 0, kFour>(V::load(unit + kIntVector * (i / 2)));
    }
    if constexpr ((kBits & 2) != 0) {
      const typename V::Codes plane = V::load(unit + kIntVector * (kTwos + i / 4));
      if constexpr ((kBits & 4) != 0) {
        codes = V::template with_bits<2 * (i % 4), kTwos, kTwo>(codes, plane);
      } else {
        codes = V::template bits<2 * (i % 4), kTwos, kTwo>(plane);
      }
    }
    if constexpr ((kBits & 1) != 0) {
      const typename V::Codes plane = V::load(unit + kIntVector * kOnes);
      if constexpr (kOnes != 0) {
        codes = V::template with_bits<i, kOnes, kOne>(codes, plane);
      } else {
        codes = V::template bits<i, kOnes, kOne>(plane);
      }
    }
    return codes;
  }
}

}  // namespace
}  // namespace onnxq
