// What the codes of MatMulLut stand for, on a GPU and on the CPU.
#pragma once

#include "../matmul/device.h"
#include "matmul_lut_cuda.h"

namespace onnxq::cuda {

// kBits = 0: the number of bits is known only as it runs.
template <int kBits>
struct LutWeight : onnxq_lut {
  struct Shared {};
  int64_t columns;

  ONNXQ_DEVICE LutWeight(const onnxq_lut& stored, const onnxq_matmul& call)
      : onnxq_lut(stored), columns(call.columns) {}

  ONNXQ_DEVICE void load(Shared&, int, int) const {}

  ONNXQ_DEVICE float scale(int64_t row, int64_t g) const {
    const int64_t at = (scale_rows == 1 ? 0 : row) * scale_groups + (scale_groups == 1 ? 0 : g);
    return half_value(read(scales + at));
  }

  // Where the table of a group begins.
  ONNXQ_DEVICE int64_t table(int64_t row, int64_t g) const {
    return ((lut_rows == 1 ? 0 : row) * lut_groups + (lut_groups == 1 ? 0 : g)) << bits;
  }

  ONNXQ_DEVICE float entry(int64_t at) const {
    if (is_half) return half_value(read(static_cast<const uint16_t*>(lut) + at));
    return static_cast<float>(read(static_cast<const int8_t*>(lut) + at));
  }

  // Tables of 4 and 8 bytes stay in registers, those of 16 in four of them.
  ONNXQ_DEVICE void look_up(const Octet<kBits>& octet, const uint32_t* table,
                            float (&w)[kOctet]) const {
    constexpr int kWords = kBits < 3 ? 1 : 1 << (kBits - 2);
    uint32_t words[kWords];
    ONNXQ_UNROLL for (int i = 0; i < kWords; ++i) words[i] =
        read(table + i) ^ 0x80808080u;  // 128 more
    ONNXQ_UNROLL for (int i = 0; i < kOctet; ++i) {
      const uint32_t code = octet.at(i);
      uint32_t byte = chosen_bytes(words[0], words[kWords > 1 ? 1 : 0], code & 7);
      if (kWords == 4) {
        const uint32_t high = chosen_bytes(words[kWords - 2], words[kWords - 1], code & 7);
        byte = code & 8 ? high : byte;
      }
      w[i] = whole(byte & 0xff, 128.0f);
    }
  }

  ONNXQ_DEVICE float decode(const Shared&, int64_t row, int64_t column, float (&w)[kOctet]) const {
    const int64_t pitch = (columns * bits + 7) / 8;
    const uint8_t* from = codes + row * pitch;
    const Octet<kBits> octet(from + column / 8 * bits, from + pitch, bits);
    const int64_t g = run_of(column, group, columns), end = (g + 1) * group;
    if (end >= columns || end - column >= kOctet) {
      const int64_t begin = table(row, g);
      const void* const bytes = static_cast<const int8_t*>(lut) + begin;
      if (kBits != 0 && !is_half && reinterpret_cast<uintptr_t>(bytes) % 4 == 0) {
        look_up(octet, static_cast<const uint32_t*>(bytes), w);
      } else {
        ONNXQ_UNROLL for (int i = 0; i < kOctet; ++i) w[i] = entry(begin + octet.at(i));
      }
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
      w[i] = entry(table(row, g) + octet.at(i)) * scale(row, g);
    }
  }
};

}  // namespace onnxq::cuda
