// The codes of trellises: which whole numbers a state stands for (see onnxq/numerics/trellis.py).
#pragma once

#include <cstdint>

namespace onnxq {

enum class TrellisCode { k1Mad = 0, k3Inst = 1, kHyb = 2 };

struct TrellisHash {
  uint32_t factor, added;

  // What may be added to the state instead of `added` to the product. Its low half is 0 as that of
  // `added` is, so that it is or-ed to a state. An even factor: both are halved first.
  constexpr uint32_t before() const {
    const uint32_t even = factor % 2 == 0 ? 2 : 1, odd = factor / even;
    uint32_t inverse = odd;  // to three bits, and to twice as many by each step of Newton's
    for (int step = 0; step < 4; ++step) inverse *= 2 - odd * inverse;
    return added / even * inverse;
  }
};

constexpr TrellisHash kOneMad = {34038481, 0x04910000}, kThreeInst = {89226354, 0x03d40000};
constexpr uint32_t kHybFactor = 0xbc91727f;
static_assert(kOneMad.before() * kOneMad.factor == kOneMad.added, "1mad");
static_assert(kThreeInst.before() * kThreeInst.factor == kThreeInst.added, "3inst");
static_assert(((kOneMad.before() | kThreeInst.before()) & 0xffff) == 0,
              "these bits are the state's");

constexpr int32_t kOneMadMean = 510;
// Of three instructions, 16 bits of the product become a float16 number.
constexpr uint16_t kThreeInstMask = 0x8fff, kThreeInstFlip = 0x3b60;

// The magnitudes of hyb: quantiles (i + 1/2) / 64 of |N(0, 1)|, times 44.
constexpr int8_t kTrellisMagnitudes[64] = {
    0,  1,  2,  3,  4,  5,  6,  6,  7,  8,  9,  10, 11, 12, 13, 14, 14, 15, 16,  17, 18, 19,
    20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 34, 35, 36, 37, 38, 40,  41, 42, 44,
    45, 47, 48, 50, 51, 53, 55, 57, 59, 61, 64, 66, 69, 72, 76, 80, 85, 91, 100, 117};

// A number in both halves of a word.
constexpr int32_t both_halves(int8_t number) {
  return static_cast<int32_t>(static_cast<uint16_t>(number) * 0x10001u);
}

constexpr float trellis_unit(TrellisCode code) {
  return code == TrellisCode::k1Mad ? 0x1p-7f : code == TrellisCode::k3Inst ? 0x1p-13f : 0x1p-5f;
}

}  // namespace onnxq
