#include "trellis_packed.h"

#include <algorithm>

namespace onnxq {
namespace {

// Byte `at` of row `row` in a tile whose rows have `run` bytes.
int64_t place_of(int run, int row, int at) {
  const int whole = run / 4 * 4, pair = run % 4 / 2 * 2;
  if (at < whole) return at / 4 * 64 + 4 * row + at % 4;
  if (at < whole + pair) return 16 * whole + 2 * row + at - whole;
  return 16 * (whole + pair) + row;
}

}  // namespace

PackedTrellis::PackedTrellis(const StoredTrellis& stored)
    : matrix_{stored.rows,       stored.columns, stored.code, stored.step_bits,
              stored.state_bits, nullptr,        nullptr} {
  TrellisMatrix& w = matrix_;
  constexpr int kRows = kTrellisTile;
  const int run = w.run();
  const int64_t blocks = (w.rows + kRows - 1) / kRows, tiles = w.columns / kTrellisTile;
  uint8_t* tile = codes_.zeros<uint8_t>(blocks * w.block_bytes());
  float* const scales = scales_.zeros<float>(blocks * kRows);
  w.codes = tile;
  w.scales = scales;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * kRows, count = std::min<int64_t>(kRows, w.rows - first);
    for (int row = 0; row < kRows; ++row) {
      const int64_t from = stored.scale_rows == 1 ? 0 : first + row % count;
      scales[first + row] = stored.scales[from] * trellis_unit(w.code);
    }
    for (int64_t at = 0; at < tiles; ++at, tile += w.tile_bytes()) {
      for (int row = 0; row < kRows; ++row) {
        const uint8_t* bytes = stored.codes + ((first + row % count) * tiles + at) * run;
        for (int byte = 0; byte < run; ++byte) tile[place_of(run, row, byte)] = bytes[byte];
      }
    }
  }
}

}  // namespace onnxq
