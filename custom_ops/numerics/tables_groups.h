// Going over the groups of a weight with several threads.
#pragma once

#include <algorithm>
#include <atomic>

#include "parallel.h"
#include "tables.h"

namespace onnxq {

// Calls visit(row, group, first column, columns) for every group, each worker with its own State.
template <class State, class Visit>
void for_groups(const Numbers& numbers, int threads, const State& make, const Visit& visit) {
  std::atomic<int64_t> next{0};
  const int workers = worker_count(numbers.rows, threads);
  split(workers, workers, [&](int, int64_t, int64_t) {
    auto state = make();
    for (int64_t row = next++; row < numbers.rows; row = next++) {
      for (int64_t group = 0; group < numbers.groups(); ++group) {
        const int64_t first = group * numbers.group;
        visit(state, row, group, first, std::min(numbers.group, numbers.columns - first));
      }
    }
  });
}

}  // namespace onnxq
