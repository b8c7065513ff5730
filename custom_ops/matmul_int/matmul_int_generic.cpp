#include <cmath>
#include <cstring>

#include "../cpu/cpu.h"
#include "matmul_int.h"

namespace onnxq {
namespace {

constexpr int64_t kVectors = kIntUnit / 4;

// The codes of a unit, vector by vector.
void decode(const uint8_t* unit, int bits, uint8_t* codes) {
  if (bits == 8) {
    std::memcpy(codes, unit, kVectors * kIntVector);
    return;
  }
  const int64_t twos = bits & 4, ones = bits & 6;
  for (int64_t i = 0; i < kVectors; ++i, codes += kIntVector) {
    const uint8_t* plane = unit + i / 2 * kIntVector;
    for (int64_t at = 0; at < kIntVector; ++at) {
      codes[at] = bits & 4 ? plane[at] >> (4 * (i % 2)) & 0x0f : 0;
    }
    plane = unit + (twos + i / 4) * kIntVector;
    for (int64_t at = 0; (bits & 2) && at < kIntVector; ++at) {
      codes[at] = static_cast<uint8_t>(codes[at] | (plane[at] >> (2 * (i % 4)) & 3) << twos);
    }
    plane = unit + ones * kIntVector;
    for (int64_t at = 0; (bits & 1) && at < kIntVector; ++at) {
      codes[at] = static_cast<uint8_t>(codes[at] | (plane[at] >> i & 1) << ones);
    }
  }
}

void add_unit(const uint8_t* codes, const int8_t* q, int32_t* sums) {
  for (int64_t i = 0; i < kVectors; ++i, codes += kIntVector, q += 4) {
    for (int64_t row = 0; row < kIntRows; ++row) {
      for (int64_t at = 0; at < 4; ++at) sums[row] += codes[4 * row + at] * q[at];
    }
  }
}

// Tokens [first, first + kTile) at most, times a block.
constexpr int64_t kTile = 8;

void multiply_block(const IntMatrix& w, int64_t block, const uint8_t* prepared, int64_t count,
                    float (*y)[kIntRows]) {
  const IntToken layout(w);
  const uint8_t* unit = w.codes + block * w.block_bytes();
  int32_t whole[kTile][kIntRows] = {};
  int64_t column = 0;
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t side = (block * w.groups + g) * kIntRows;
    int32_t sums[kTile][kIntRows] = {};
    for (const int64_t end = column + w.units_of(g) * kIntUnit; column < end; column += kIntUnit) {
      uint8_t codes[kVectors * kIntVector];
      decode(unit, w.bits, codes);
      unit += w.bits * kIntVector;
      for (int64_t token = 0; token < count; ++token) {
        add_unit(codes, layout.codes_of(prepared + token * layout.size) + column, sums[token]);
      }
    }
    for (int64_t token = 0; token < count; ++token) {
      const int32_t code_sum = layout.sums_of(prepared + token * layout.size)[g];
      for (int64_t row = 0; row < kIntRows; ++row) {
        const int32_t sum = sums[token][row] - w.zeros[side + row] * code_sum;
        if (w.ratios != nullptr) {
          whole[token][row] += sum * w.ratios[side + row];
        } else {
          y[token][row] += static_cast<float>(sum) * w.scales[side + row];
        }
      }
    }
  }
  if (w.ratios == nullptr) return;
  for (int64_t token = 0; token < count; ++token) {
    for (int64_t row = 0; row < kIntRows; ++row) {
      y[token][row] = static_cast<float>(whole[token][row]) * w.scales[block * kIntRows + row];
    }
  }
}

void multiply(const IntMatrix& w, const uint8_t* prepared, int64_t tokens, float* y, int64_t stride,
              int64_t begin, int64_t end) {
  const IntToken layout(w);
  for (int64_t row = begin; row < end; row += kIntRows) {
    const int64_t rows = end - row < kIntRows ? end - row : kIntRows;
    for (int64_t first = 0; first < tokens; first += kTile) {
      const int64_t count = tokens - first < kTile ? tokens - first : kTile;
      float results[kTile][kIntRows] = {};
      const uint8_t* from = prepared + first * layout.size;
      multiply_block(w, row / kIntRows, from, count, results);
      for (int64_t token = 0; token < count; ++token, from += layout.size) {
        float* to = y + (first + token) * stride + row;
        for (int64_t at = 0; at < rows; ++at) to[at] = results[token][at] * layout.scale_of(from);
      }
    }
  }
}

// max |a|, as integers: NaN is larger than infinity.
float largest_of(const float* a, int64_t count) {
  uint32_t most = 0;
  for (int64_t at = 0; at < count; ++at) {
    uint32_t bits;
    std::memcpy(&bits, a + at, sizeof(bits));
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  float value;
  std::memcpy(&value, &most, sizeof(value));
  return value;
}

int8_t rounded(float a, float inverse) {
  const float value = std::nearbyint(a * inverse);
  return value >= -127.0f && value <= 127.0f ? static_cast<int8_t>(value) : int8_t{0};  // 0: NaN
}

void prepare(const IntMatrix& w, const float* a, int64_t begin, int64_t end, uint8_t* prepared) {
  const IntToken layout(w);
  for (int64_t token = begin; token < end; ++token) {
    const float* from = a + token * w.columns;
    uint8_t* to = prepared + token * layout.size;
    float largest = largest_of(from, w.columns);
    if (largest < kIntLeast) largest = kIntLeast;
    int8_t* q = reinterpret_cast<int8_t*>(to);
    int32_t* sums = reinterpret_cast<int32_t*>(to + layout.sums);
    for (int64_t g = 0; g < w.groups; ++g, ++sums) {
      const int64_t group_begin = g * w.group, filled = w.units_of(g) * kIntUnit;
      *sums = 0;
      for (int64_t at = 0; at < filled; ++at, ++q) {
        const int64_t column = group_begin + at;
        *q = at < w.group && column < w.columns ? rounded(from[column], 127.0f / largest)
                                                : int8_t{0};
        *sums += *q;
      }
    }
    *reinterpret_cast<float*>(to + layout.scale) = largest / 127.0f;
  }
}

}  // namespace

const IntKernels& int_kernels_generic() {
  static constexpr IntKernels kernels = {"generic", 1, prepare, multiply};
  return kernels;
}

const IntKernels& int_kernels() {
  const IntKernels *kernels = nullptr, *arm = nullptr;
  switch (instructions()) {
    case Instructions::kAmx:
      kernels = int_kernels_amx();
      break;
    case Instructions::kVnni:
      kernels = int_kernels_vnni();
      break;
    case Instructions::kAvx512:
      kernels = int_kernels_avx512();
      arm = int_kernels_i8mm();
      break;
    case Instructions::kAvx2:
      kernels = int_kernels_avx2();
      arm = int_kernels_dot();
      break;
    case Instructions::kGeneric:
      break;
  }
  if (kernels == nullptr) kernels = arm;
  return kernels != nullptr ? *kernels : int_kernels_generic();
}

}  // namespace onnxq
