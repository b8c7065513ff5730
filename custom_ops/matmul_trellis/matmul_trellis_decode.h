// What the codes of MatMulTrellis stand for, on a GPU and on the CPU. States and codes are told in
// onnxq/numerics/trellis.py, rings in onnxq/formats/trellis.py.
#pragma once

#include "../matmul/device.h"
#include "matmul_trellis_cuda.h"
#include "trellis_codes.h"

namespace onnxq::cuda {

// The numbers of hyb by the seven bits that choose one: 64 magnitudes, then those below zero.
struct HybNumbers {
  int8_t number[128];
};

constexpr HybNumbers hyb_numbers() {
  HybNumbers numbers{};
  for (int at = 0; at < 64; ++at) {
    numbers.number[at] = kTrellisMagnitudes[at];
    numbers.number[at + 64] = static_cast<int8_t>(-kTrellisMagnitudes[at]);
  }
  return numbers;
}

#ifdef __CUDACC__
__constant__ const HybNumbers kDeviceHybNumbers = hyb_numbers();
#endif
constexpr HybNumbers kHybNumbers = hyb_numbers();

template <TrellisCode kCode>
struct TrellisWeight : onnxq_trellis {
  static constexpr int kTile = 16;                                    // rows and columns of a ring
  static constexpr int kVector = kCode == TrellisCode::kHyb ? 2 : 1;  // weights of a state
  using Shared = HybNumbers;
  int64_t columns, rows;

  ONNXQ_DEVICE TrellisWeight(const onnxq_trellis& stored, const onnxq_matmul& call)
      : onnxq_trellis(stored), columns(call.columns), rows(call.rows) {}

  ONNXQ_DEVICE void load(Shared& shared, int thread, int threads) const {
    if (kCode != TrellisCode::kHyb) return;
#ifdef __CUDA_ARCH__
    const HybNumbers& numbers = kDeviceHybNumbers;
#else
    const HybNumbers& numbers = kHybNumbers;
#endif
    for (int at = thread; at < 128; at += threads) shared.number[at] = numbers.number[at];
  }

  // What a state stands for: whole numbers, those of 3inst in units of their own.
  ONNXQ_DEVICE void put(const Shared& shared, uint32_t state, float* w) const {
    if (kCode == TrellisCode::k1Mad) {
      constexpr uint32_t kFactor = kOneMad.factor, kAdded = kOneMad.added;
      constexpr float kMean = kOneMadMean;
      const uint32_t mixed = state * kFactor + kAdded;
      const uint32_t pairs = (mixed & 0x00ff00ffu) + (mixed >> 8 & 0x00ff00ffu);
      w[0] = whole((pairs & 0xffff) + (pairs >> 16), kMean);
    } else if (kCode == TrellisCode::k3Inst) {
      constexpr uint32_t kFactor = kThreeInst.factor, kAdded = kThreeInst.added;
      constexpr uint32_t kMask = kThreeInstMask * 0x10001u, kFlip = kThreeInstFlip * 0x10001u;
      const uint32_t halves = ((state * kFactor + kAdded) & kMask) ^ kFlip;
      w[0] = half_value(static_cast<uint16_t>(halves)) +
             half_value(static_cast<uint16_t>(halves >> 16));
    } else {
      const uint32_t mixed = state * kHybFactor;
      w[0] = static_cast<float>(shared.number[mixed >> 16 & 127]);
      w[1] = static_cast<float>(shared.number[mixed >> 24 & 127]);
    }
  }

  // Reads the bits of the steps of eight columns and those of later ones that the last state
  // reaches, 44 at most.
  ONNXQ_DEVICE float decode(const Shared& shared, int64_t row, int64_t column,
                            float (&w)[kOctet]) const {
    const int row_bytes = kTile / kVector * step_bits / 8;  // of a ring
    const int64_t pitch = columns / kTile * row_bytes, first = row / kTile * kTile;
    const int tile_rows = static_cast<int>(rows - first < kTile ? rows - first : kTile);
    const uint8_t* ring = codes + first * pitch + column / kTile * row_bytes;
    const int begin = static_cast<int>(column % kTile) / kVector * step_bits;
    int down = static_cast<int>(row - first), across = begin / 8;
    const int wanted = begin % 8 + (kOctet / kVector - 1) * step_bits + state_bits;
    uint64_t word = 0;
    ONNXQ_UNROLL for (int i = 0; i < 6; ++i) {
      if (8 * i < wanted) {
        word |= static_cast<uint64_t>(read(ring + down * pitch + across)) << (8 * i);
      }
      if (++across == row_bytes) {
        across = 0;
        down = down + 1 == tile_rows ? 0 : down + 1;
      }
    }
    word >>= begin % 8;
    const uint32_t mask = (1u << state_bits) - 1;
    ONNXQ_UNROLL for (int i = 0; i < kOctet / kVector; ++i) {
      put(shared, static_cast<uint32_t>(word >> (i * step_bits)) & mask, w + kVector * i);
    }
    constexpr float kUnit = kCode == TrellisCode::k3Inst ? 1.0f : trellis_unit(kCode);
    return half_value(read(scales + (scale_rows == 1 ? 0 : row))) * kUnit;
  }
};

}  // namespace onnxq::cuda
