// Where codes lie in memory, the choice of kernels, and the loops over panels of decoded rows that
// all instruction sets share.
#include "lut.h"

#include <algorithm>

#include "../cpu/cpu.h"

namespace onnxq {

const LutKernels& lut_kernels() {
  const Instructions most = instructions();
  const LutKernels* found = nullptr;
  if (most >= Instructions::kVnni) found = lut_kernels_vnni();
  if (found == nullptr && most >= Instructions::kAvx512) found = lut_kernels_avx512();
  if (found == nullptr && most >= Instructions::kAvx2) found = lut_kernels_avx2();
  if (found == nullptr && most >= Instructions::kDot) found = lut_kernels_dot();
  return found != nullptr ? *found : lut_kernels_generic();
}

int64_t LutLayout::row_bytes(int64_t count) const {
  const int64_t left = count % units();
  const int64_t last = bits == 3 ? std::min(lines(), (left + 1) / 2) : std::min<int64_t>(left, 1);
  return (count / units() * lines() + last) * kUnit;
}

void LutLayout::put(uint8_t* row, int64_t column, unsigned code) const {
  const int64_t unit = column / kUnit, inside = unit % units();
  uint8_t* lane = row + unit / units() * lines() * kUnit + column % kUnit;
  const auto add = [](uint8_t& byte, unsigned part, int64_t place) {
    byte = static_cast<uint8_t>(byte | part << place);
  };
  if (bits != 3) return add(*lane, code, inside * bits);
  if (inside < 6) return add(lane[inside / 2 * kUnit], code, inside % 2 * bits);
  const unsigned six = code << (inside - 6) * bits;
  for (int line = 0; line < 3; ++line) add(lane[line * kUnit], six >> 2 * line & 3, 6);
}

namespace {

constexpr int64_t kPanel = kPanelUnits * kUnit;

// Results of a tile into y: set, or added, by which panel it is.
void store(const LutMatrix& w, bool is_first, const float* sums, int64_t row, int64_t end,
           int64_t token, int count, float* y, int64_t stride) {
  const int64_t rows = std::min<int64_t>(kLutRows, end - row);
  for (int64_t index = 0; index < rows; ++index) {
    const float scale = w.grouped ? 1.0f : w.scales[(row + index) * w.scale_row];
    for (int at = 0; at < count; ++at) {
      float& to = y[(token + at) * stride + row + index];
      const float sum = scale * sums[index * kLutTokens + at];
      to = is_first ? sum : to + sum;
    }
  }
}

// visit(token, how many) for all tokens, kLutTokens at a time.
template <class Visit>
void by_tile(int64_t tokens, const Visit& visit) {
  for (int64_t token = 0; token < tokens; token += kLutTokens) {
    visit(token, static_cast<int>(std::min<int64_t>(kLutTokens, tokens - token)));
  }
}

}  // namespace

void lut_multiply(const LutMatrix& w, const LutKernels& kernels, const uint8_t* prepared,
                  int64_t tokens, float* y, int64_t stride, int64_t begin, int64_t end) {
  constexpr int64_t kFew = 2;  // tokens for which a row is decoded anew each time
  const LutToken layout(w);
  float sums[kLutRows * kLutTokens];
  alignas(64) uint8_t panel[kLutRows * kPanel];
  for (int64_t row = begin; row < end; row += kLutRows) {
    if (kernels.one != nullptr && tokens <= kFew) {
      for (int64_t token = 0; token < tokens; ++token) {
        kernels.one(w, layout, row, prepared + token * layout.size, sums);
        store(w, true, sums, row, end, token, 1, y, stride);
      }
      continue;
    }
    for (int64_t first = 0; first < w.units; first += kPanelUnits) {
      const int64_t last = std::min(w.units, first + kPanelUnits);
      for (int64_t index = 0; index < kLutRows; ++index) {
        kernels.decode(w, row + index, first, last, panel + index * kPanel);
      }
      by_tile(tokens, [&](int64_t token, int count) {
        kernels.tile(w, layout, panel, row, first, last, prepared + token * layout.size, count,
                     sums);
        store(w, first == 0, sums, row, end, token, count, y, stride);
      });
    }
  }
}

void lut_multiply_float(const LutMatrix& w, const LutKernels& kernels, const float* a,
                        int64_t tokens, float* y, int64_t stride, int64_t begin, int64_t end) {
  float sums[kLutRows * kLutTokens];
  alignas(64) uint8_t numbers[kPanel];
  alignas(64) float panel[kLutRows * kPanel];
  for (int64_t row = begin; row < end; row += kLutRows) {
    for (int64_t first = 0; first < w.units; first += kPanelUnits) {
      const int64_t last = std::min(w.units, first + kPanelUnits);
      const int64_t depth = std::min(last * kUnit, w.columns) - first * kUnit;
      for (int64_t index = 0; index < kLutRows; ++index) {
        kernels.decode(w, row + index, first, last, numbers);
        kernels.expand(w, row + index, first, last, numbers, panel + index * kPanel);
      }
      by_tile(tokens, [&](int64_t token, int count) {
        const float* from = a + token * w.columns + first * kUnit;
        kernels.tile_float(panel, kPanel, from, w.columns, count, depth, sums);
        store(w, first == 0, sums, row, end, token, count, y, stride);
      });
    }
  }
}

}  // namespace onnxq
