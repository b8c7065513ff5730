// What the codes of MatMulTernary stand for, on a GPU and on the CPU.
#pragma once

#include "../matmul/device.h"
#include "matmul_ternary_cuda.h"

namespace onnxq::cuda {

struct TernaryWeight : onnxq_ternary {
  struct Shared {};
  int64_t columns, groups, plane_bytes;

  ONNXQ_DEVICE TernaryWeight(const onnxq_ternary& stored, const onnxq_matmul& call)
      : onnxq_ternary(stored),
        columns(call.columns),
        groups((call.columns + stored.group - 1) / stored.group),
        plane_bytes((call.columns + 4) / 5) {}

  ONNXQ_DEVICE void load(Shared&, int, int) const {}

  ONNXQ_DEVICE float scale(int64_t row, int plane, int64_t column) const {
    const int64_t at = (scale_rows == 1 ? 0 : row) * planes + plane;
    return number(scales, is_half, at * groups + run_of(column, group, columns));
  }

  // Eight trits lie in two bytes or three: 15 of them as one number to the base 3.
  ONNXQ_DEVICE float decode(const Shared&, int64_t row, int64_t column, float (&w)[kOctet]) const {
    const uint32_t first = static_cast<uint32_t>(column) / 5, skipped = column % 5;
    ONNXQ_UNROLL for (int i = 0; i < kOctet; ++i) w[i] = 0.0f;
    for (int plane = 0; plane < planes; ++plane) {
      const uint8_t* from = codes + (row * planes + plane) * plane_bytes + first;
      const int64_t left = plane_bytes - first;
      uint32_t trits = read(from);
      if (left > 1) trits += read(from + 1) * 243u;
      if (left > 2) trits += read(from + 2) * 59049u;
      for (uint32_t i = 0; i < skipped; ++i) trits /= 3;
      const bool is_split = group < columns && group % kOctet != 0;
      float factor = scale(row, plane, column);
      ONNXQ_UNROLL for (int i = 0; i < kOctet; ++i) {
        if (is_split && column + i < columns) factor = scale(row, plane, column + i);
        w[i] += whole(trits % 3, 1.0f) * factor;
        trits /= 3;
      }
    }
    return 1.0f;
  }
};

}  // namespace onnxq::cuda
