#include "entry_descent.h"

#include <vector>

#include "../cpu/cpu.h"
#include "parallel.h"

namespace onnxq {

const EntryDescentKernels& entry_descent_kernels() {
  const Instructions most = instructions();
  const EntryDescentKernels* found = nullptr;
  if (most >= Instructions::kAvx512) found = entry_descent_avx512();
  if (found == nullptr && most >= Instructions::kAvx2) found = entry_descent_avx2();
  return found != nullptr ? *found : *entry_descent_generic();
}

int64_t descend_entries(const float* hessian, int64_t rows, int64_t columns,
                        const EntryTables& tables, ptrdiff_t row_stride, int sweeps, uint8_t* codes,
                        float* residual, int threads) {
  const EntryDescentKernels& kernels = entry_descent_kernels();
  std::vector<float> inverse(static_cast<size_t>(columns));
  constexpr float kLeast = 0x1p-126f;  // the smallest normal number
  for (int64_t column = 0; column < columns; ++column) {
    const float diagonal = hessian[column * columns + column];
    inverse[static_cast<size_t>(column)] = diagonal < kLeast ? 0.0f : 1.0f / diagonal;
  }
  std::vector<int64_t> changed(static_cast<size_t>(rows));
  share(rows, threads, [&](int64_t row) {
    EntryTables mine = tables;
    mine.points += row * row_stride;
    changed[static_cast<size_t>(row)] =
        kernels.descend(hessian, inverse.data(), columns, mine, sweeps, codes + row * columns,
                        residual + row * columns);
  });
  int64_t all = 0;
  for (int64_t count : changed) all += count;
  return all;
}

void entry_sums(const float* hessian, int64_t rows, int64_t columns, int64_t first, int64_t count,
                const uint8_t* codes, int entries, double* sums, int threads) {
  const EntryDescentKernels& kernels = entry_descent_kernels();
  const float* block = hessian + first * columns + first;
  const int workers = worker_count(rows, threads);
  split(rows, workers, [&](int, int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(entries * count));
    for (int64_t row = begin; row < end; ++row) {
      kernels.sums(block, columns, count, codes + row * columns + first, entries, scratch.data(),
                   sums + row * entries * entries);
    }
  });
}

}  // namespace onnxq
