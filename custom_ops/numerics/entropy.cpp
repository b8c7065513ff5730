#include "entropy.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"

namespace onnxq {
namespace {

constexpr double kNoMass = 1e-4;  // stands for an empty level that outliers were pushed into

double x_log_x(double value) { return value > 0 ? value * std::log(value) : 0.0; }

// Sums over bins [0, index): with them a window costs its levels, not its bins.
struct Sums {
  std::vector<int64_t> count, filled;
  std::vector<double> entropy;

  Sums(const int64_t* bins, int64_t size)
      : count(static_cast<size_t>(size) + 1),
        filled(static_cast<size_t>(size) + 1),
        entropy(static_cast<size_t>(size) + 1) {
    for (size_t index = 0; index < static_cast<size_t>(size); ++index) {
      count[index + 1] = count[index] + bins[index];
      filled[index + 1] = filled[index] + (bins[index] != 0);
      entropy[index + 1] = entropy[index] + x_log_x(static_cast<double>(bins[index]));
    }
  }
};

double divergence_of(const int64_t* bins, const Sums& sums, int64_t begin, int64_t end,
                     int levels) {
  const auto at = [](int64_t index) { return static_cast<size_t>(index); };
  const int64_t total = sums.count.back(), size = end - begin;
  const int64_t inside = sums.count[at(end)] - sums.count[at(begin)];
  if (size < levels || inside == 0) return INFINITY;
  const int64_t left = sums.count[at(begin)], right = total - sums.count[at(end)];
  const int64_t first = bins[begin], last = bins[end - 1];
  double entropy = sums.entropy[at(end)] - sums.entropy[at(begin)];
  if (size == 1) {
    entropy = x_log_x(static_cast<double>(total));
  } else {
    entropy += x_log_x(static_cast<double>(first + left)) - x_log_x(static_cast<double>(first)) +
               x_log_x(static_cast<double>(last + right)) - x_log_x(static_cast<double>(last));
  }
  double cross = 0.0;
  for (int level = 0; level < levels; ++level) {
    const int64_t from = begin + size * level / levels;
    const int64_t to = begin + size * (level + 1) / levels;
    const int64_t mass = sums.count[at(to)] - sums.count[at(from)];
    int64_t seen = mass, filled = sums.filled[at(to)] - sums.filled[at(from)];
    if (level == 0) {
      seen += left;
      filled += first == 0 && left != 0;
    }
    if (level + 1 == levels) {
      seen += right;
      // A window of one bin takes both ends in it: count that bin as filled once.
      filled += last == 0 && right != 0 && !(size == 1 && left != 0);
    }
    if (seen == 0) continue;
    const double each = mass == 0 ? kNoMass : static_cast<double>(mass);
    cross += static_cast<double>(seen) * std::log(each / static_cast<double>(filled));
  }
  const double all = static_cast<double>(total);
  return (entropy - cross) / all - std::log(all) + std::log(static_cast<double>(inside));
}

}  // namespace

void entropy_sweep(const int64_t* bins, int64_t half, int64_t first, int64_t last, int levels,
                   int threads, double* divergence) {
  const Sums sums(bins, 2 * half);
  split(half, worker_count(half, threads), [&](int, int64_t from, int64_t to) {
    for (int64_t index = from; index < to; ++index) {
      const int64_t begin = std::max(first, half - index - 1);
      const int64_t end = std::min(last, half + index + 1);
      divergence[index] = divergence_of(bins, sums, begin, end, levels);
    }
  });
}

}  // namespace onnxq
