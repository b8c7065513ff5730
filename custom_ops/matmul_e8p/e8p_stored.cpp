#include "e8p_stored.h"

namespace onnxq {

PackedE8p::PackedE8p(const StoredE8p& stored)
    : matrix_{stored.rows, stored.columns, stored.bits, nullptr, nullptr} {
  const int64_t blocks = (stored.rows + kE8pRows - 1) / kE8pRows;
  const int64_t codes = blocks * matrix_.block_bytes();
  const int64_t scales = blocks * kE8pRows * static_cast<int64_t>(sizeof(float));
  codes_ = memory_.zeros<uint8_t>(codes + scales);
  scales_ = reinterpret_cast<float*>(codes_ + codes);
  for (int64_t row = 0; row < stored.rows; ++row) pack_row(stored, row);
  matrix_.codes = codes_;
  matrix_.scales = scales_;
}

void PackedE8p::pack_row(const StoredE8p& stored, int64_t row) {
  const float unit = stored.bits == 3 ? 0.25f : 1.0f / kE8pGains.unit;
  scales_[row] = stored.scales[stored.scale_rows == 1 ? 0 : row] * unit;
  const int64_t runs = stored.columns / kE8pWidth, in_row = row % kE8pRows * kE8pWidth;
  const uint8_t* from = stored.codes + row * runs * stored.bits;
  uint8_t* block = codes_ + row / kE8pRows * matrix_.block_bytes();
  for (int64_t run = 0; run < runs; ++run) {
    uint8_t* to = block + run / 8 * matrix_.unit_bytes() + in_row + run % 8;
    for (int plane = 0; plane < stored.bits; ++plane) to[plane * kE8pColumns] = *from++;
  }
}

}  // namespace onnxq
