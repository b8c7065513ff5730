// Source of entry_descent_*.cpp, its only readers. No standard library templates here: a template
// compiled for newer CPUs could be the copy that the linker keeps for everyone.
#include "entry_descent.h"

namespace onnxq {
namespace {

// A code moves only when another point is nearer by more than this part of the distance, so that
// a tie is no reason to move for ever.
constexpr float kSlack = 0x1p-9f;

inline void add_row(const float* row, float factor, int64_t count, float* sums) {
  for (int64_t at = 0; at < count; ++at) sums[at] += factor * row[at];
}

int64_t descend(const float* hessian, const float* inverse, int64_t columns,
                const EntryTables& tables, int sweeps, uint8_t* codes, float* residual) {
  int64_t all = 0;
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    int64_t changed = 0;
    for (int64_t column = 0; column < columns; ++column) {
      if (inverse[column] == 0.0f) continue;
      const float* points = tables.points + column / tables.group * tables.group_stride;
      const float now = points[codes[column]], shift = residual[column] * inverse[column];
      float least = (shift < 0.0f ? -shift : shift) * (1.0f - kSlack);
      int best = codes[column];
      for (int entry = 0; entry < tables.count; ++entry) {
        const float gap = now + shift - points[entry], distance = gap < 0.0f ? -gap : gap;
        if (distance < least) {
          least = distance;
          best = entry;
        }
      }
      if (best == codes[column]) continue;
      codes[column] = static_cast<uint8_t>(best);
      add_row(hessian + column * columns, now - points[best], columns, residual);
      ++changed;
    }
    all += changed;
    if (changed == 0) break;
  }
  return all;
}

void sums(const float* hessian, ptrdiff_t stride, int64_t columns, const uint8_t* codes,
          int entries, float* scratch, double* sums) {
  for (int64_t at = 0; at < entries * columns; ++at) scratch[at] = 0.0f;
  for (int64_t row = 0; row < columns; ++row) {
    add_row(hessian + row * stride, 1.0f, columns, scratch + codes[row] * columns);
  }
  for (int at = 0; at < entries * entries; ++at) sums[at] = 0.0;
  for (int entry = 0; entry < entries; ++entry) {
    const float* from = scratch + entry * columns;
    double* to = sums + entry * entries;
    for (int64_t column = 0; column < columns; ++column) {
      to[codes[column]] += static_cast<double>(from[column]);
    }
  }
}

constexpr EntryDescentKernels kKernels = {descend, sums};

}  // namespace
}  // namespace onnxq
