// What the codes of MatMulTrellis stand for, on a GPU and on the CPU. States and codes are told in
// onnxq/numerics/trellis.py, rings in onnxq/formats/trellis.py.
#pragma once

#include "../matmul/device.h"
#include "matmul_trellis_cuda.h"

namespace onnxq::cuda {

enum class TrellisCode { k1Mad = 0, k3Inst = 1 };

// The whole number of a state.
template <TrellisCode kCode>
ONNXQ_DEVICE float state_value(uint32_t state) {
  if (kCode == TrellisCode::k1Mad) {
    const uint32_t mixed = state * 34038481u + 0x04910000u;
    const uint32_t pairs = (mixed & 0x00ff00ffu) + (mixed >> 8 & 0x00ff00ffu);
    return whole((pairs & 0xffff) + (pairs >> 16), 510.0f);
  }
  const uint32_t mixed = ((state * 89226354u + 0x03d40000u) & 0x8fff8fffu) ^ 0x3b603b60u;
  return half_value(static_cast<uint16_t>(mixed)) + half_value(static_cast<uint16_t>(mixed >> 16));
}

template <TrellisCode kCode>
struct TrellisWeight : onnxq_trellis {
  static constexpr int kTile = 16;  // rows and columns of a ring
  struct Shared {};
  int64_t columns, rows;

  TrellisWeight(const onnxq_trellis& stored, const onnxq_matmul& call)
      : onnxq_trellis(stored), columns(call.columns), rows(call.rows) {}

  ONNXQ_DEVICE void load(Shared&, int, int) const {}

  ONNXQ_DEVICE float decode(const Shared&, int64_t row, int64_t column, float (&w)[kOctet]) const {
    const int64_t pitch = columns / 8 * step_bits;
    const int64_t first = row / kTile * kTile;
    const int tile_rows = static_cast<int>(rows - first < kTile ? rows - first : kTile);
    const int row_bytes = 2 * step_bits;  // of a ring
    const uint8_t* ring = codes + first * pitch + column / kTile * row_bytes;
    // The bits of eight steps, and those of later ones that the last states reach.
    int down = static_cast<int>(row - first),
        across = static_cast<int>(column % kTile / 8) * step_bits;
    uint64_t word = 0;
    ONNXQ_UNROLL for (int i = 0; i < 6; ++i) {
      if (i < step_bits + 2) {
        word |= static_cast<uint64_t>(read(ring + down * pitch + across)) << (8 * i);
      }
      if (++across == row_bytes) {
        across = 0;
        down = down + 1 == tile_rows ? 0 : down + 1;
      }
    }
    const uint32_t mask = (1u << state_bits) - 1;
    ONNXQ_UNROLL for (int i = 0; i < kOctet; ++i) {
      w[i] = state_value<kCode>(static_cast<uint32_t>(word >> (i * step_bits)) & mask);
    }
    // 3inst: the halves are numbers already.
    return half_value(read(scales + (scale_rows == 1 ? 0 : row))) *
           (kCode == TrellisCode::k1Mad ? 0x1p-7f : 1.0f);
  }
};

}  // namespace onnxq::cuda
