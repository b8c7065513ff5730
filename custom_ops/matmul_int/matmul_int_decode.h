// What the codes of MatMulInt stand for, on a GPU and on the CPU.
#pragma once

#include "../matmul/device.h"
#include "matmul_int_cuda.h"

namespace onnxq::cuda {

// kBits = 0: the number of bits is known only as it runs.
template <int kBits>
struct IntWeight : onnxq_int {
  struct Shared {};
  int64_t columns, groups;
  uint64_t flips;  // the high bits of codes that are signed
  float middle;    // subtracted from all codes when there are no zeros

  ONNXQ_DEVICE IntWeight(const onnxq_int& stored, const onnxq_matmul& call)
      : onnxq_int(stored),
        columns(call.columns),
        groups((call.columns + stored.group - 1) / stored.group),
        flips(0),
        middle(stored.is_signed ? static_cast<float>(1 << (stored.bits - 1)) : 0.0f) {
    for (int i = 0; is_signed && i < kOctet; ++i) flips |= uint64_t{1} << (i * bits + bits - 1);
  }

  ONNXQ_DEVICE void load(Shared&, int, int) const {}

  ONNXQ_DEVICE float scale(int64_t row, int64_t g) const {
    const float scale = number(
        scales, is_half, (scale_rows == 1 ? 0 : row) * scale_groups + (scale_groups == 1 ? 0 : g));
    return ratios == nullptr ? scale : scale * static_cast<float>(read(ratios + row * groups + g));
  }

  ONNXQ_DEVICE float zero(int64_t row, int64_t g) const {
    if (zeros == nullptr) return middle;
    const uint8_t* from = zeros + (zero_rows == 1 ? 0 : row) * ((groups * bits + 7) / 8);
    const int64_t place = g * bits;
    const int shift = static_cast<int>(place % 8);
    uint32_t word = read(from + place / 8);
    if (shift + bits > 8) word |= static_cast<uint32_t>(read(from + place / 8 + 1)) << 8;
    return static_cast<float>(word >> shift & ((1u << bits) - 1));
  }

  ONNXQ_DEVICE float decode(const Shared&, int64_t row, int64_t column, float (&w)[kOctet]) const {
    const int64_t pitch = (columns * bits + 7) / 8;
    const uint8_t* from = codes + row * pitch;
    Octet<kBits> octet(from + column / 8 * bits, from + pitch, bits);
    octet.word ^= flips;
    const int64_t g = run_of(column, group, columns), end = (g + 1) * group;
    if (end >= columns || end - column >= kOctet) {
      const float zero = this->zero(row, g);
      ONNXQ_UNROLL for (int i = 0; i < kOctet; ++i) w[i] = whole(octet.at(i), zero);
      return scale(row, g);
    }
    float values[kOctet];
    decode_each(octet, row, column, values);
    ONNXQ_UNROLL for (int i = 0; i < kOctet; ++i) w[i] = values[i];
    return 1.0f;
  }

  // Octets in which a group ends: rare, and so kept out of the way.
  ONNXQ_DEVICE_CALL void decode_each(Octet<kBits> octet, int64_t row, int64_t column,
                                     float* w) const {
    for (int i = 0; i < kOctet; ++i) {
      const int64_t at = column + i < columns ? column + i : columns - 1;
      const int64_t g = run_of(at, group, columns);
      w[i] = whole(octet.at(i), zero(row, g)) * scale(row, g);
    }
  }
};

}  // namespace onnxq::cuda
