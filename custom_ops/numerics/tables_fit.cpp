#include <algorithm>
#include <vector>

#include "tables_groups.h"

namespace onnxq {
namespace {

constexpr int kLanes = 8;
constexpr int64_t kShort = 4 * kLanes;  // splits that are tried faster one by one

// The sum of squares that a split leaves to the left, and the cluster to the right of it.
inline double value_of(const double* before, const double* sums, const double* masses,
                       int64_t place, double sum, double mass) {
  constexpr double kLeast = 1e-300;  // an empty cluster has a sum of 0 too
  const double left = sum - sums[place], share = mass - masses[place];
  return before[place] + left * left / (share > kLeast ? share : kLeast);
}

int64_t best_split(const double* before, const double* sums, const double* masses, int64_t first,
                   int64_t last, double sum, double mass, double* best) {
  double found = -1.0;
  int64_t at = first, place = first;
  if (last - first >= kShort) {
    double most[kLanes], where[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      most[lane] = -1.0;
      where[lane] = 0.0;
    }
    for (; place + kLanes <= last + 1; place += kLanes) {
      const double here = static_cast<double>(place);
      for (int lane = 0; lane < kLanes; ++lane) {
        const double value = value_of(before, sums, masses, place + lane, sum, mass);
        where[lane] = value > most[lane] ? here : where[lane];
        most[lane] = value > most[lane] ? value : most[lane];
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t here = static_cast<int64_t>(where[lane]) + lane;
      if (most[lane] > found || (most[lane] == found && here < at)) {
        found = most[lane];
        at = here;
      }
    }
  }
  for (; place <= last; ++place) {
    const double value = value_of(before, sums, masses, place, sum, mass);
    if (value > found) {
      found = value;
      at = place;
    }
  }
  *best = found;
  return at;
}

// The numbers of one table, sorted; sums and masses are those of all numbers before a place.
class Sorted {
 public:
  void load(const float* values, const float* importance, int64_t count) {
    pairs_.resize(static_cast<size_t>(count));
    for (int64_t index = 0; index < count; ++index) {
      pairs_[static_cast<size_t>(index)] = {values[index], importance[index]};
    }
    std::sort(pairs_.begin(), pairs_.end(),
              [](const Pair& a, const Pair& b) { return a.value < b.value; });
    sums_.assign(1, 0.0);
    masses_.assign(1, 0.0);
    for (const Pair& pair : pairs_) {
      const double mass = pair.mass;
      sums_.push_back(sums_.back() + mass * pair.value);
      masses_.push_back(masses_.back() + mass);
    }
  }

  int64_t count() const { return static_cast<int64_t>(pairs_.size()); }
  const std::vector<double>& sums() const { return sums_; }
  const std::vector<double>& masses() const { return masses_; }

  // How many numbers are not above `limit`.
  int64_t up_to(double limit) const {
    const auto above = std::partition_point(pairs_.begin(), pairs_.end(),
                                            [&](const Pair& pair) { return pair.value <= limit; });
    return above - pairs_.begin();
  }

 private:
  struct Pair {
    float value, mass;
  };
  std::vector<Pair> pairs_;
  std::vector<double> sums_, masses_;
};

// The best clusters of sorted points for every number of points and of clusters, a layer for each
// number of clusters. The best split of a longer run lies no earlier than that of a shorter one,
// nor than that of the same run into fewer clusters: halving the runs takes n log n steps a layer
// (Grønlund et al., "Fast Exact k-Means, k-Medians and Bregman Divergence Clustering in 1D",
// arXiv:1701.07204).
class Layers {
 public:
  // ends[cluster]: one past the last point of each of `clusters` clusters.
  void solve(const std::vector<double>& sums, const std::vector<double>& masses, int clusters,
             std::vector<int64_t>& ends) {
    sums_ = sums.data();
    masses_ = masses.data();
    const int64_t count = static_cast<int64_t>(sums.size()) - 1;
    const size_t size = sums.size();
    splits_.assign(size * static_cast<size_t>(clusters), 0);
    now_.assign(size, 0.0);
    before_.resize(size);
    for (int64_t end = 1; end <= count; ++end) {
      const double mass = masses_[end];
      now_[static_cast<size_t>(end)] = mass > 0.0 ? sums_[end] * sums_[end] / mass : 0.0;
    }
    for (int layer = 1; layer < clusters; ++layer) {
      std::swap(now_, before_);
      layer_ = splits_.data() + static_cast<size_t>(layer) * size;
      below_ = layer_ - size;
      // Only the whole run matters in the last layer.
      fill(layer + 1 == clusters ? count : 0, count, 0, count);
    }
    ends.assign(static_cast<size_t>(clusters), 0);
    int64_t end = count;
    for (int layer = clusters - 1; layer >= 0; --layer) {
      ends[static_cast<size_t>(layer)] = end;
      end = splits_[static_cast<size_t>(layer) * size + static_cast<size_t>(end)];
    }
  }

 private:
  void fill(int64_t from, int64_t to, int64_t first, int64_t last) {
    while (from <= to) {
      const int64_t end = (from + to) / 2;
      const int64_t low = std::max<int64_t>(first, below_[end]);
      const int64_t high = std::max(low, std::min(last, end));
      const int64_t split = best_split(before_.data(), sums_, masses_, low, high, sums_[end],
                                       masses_[end], &now_[static_cast<size_t>(end)]);
      layer_[end] = static_cast<int32_t>(split);
      fill(from, end - 1, first, split);
      from = end + 1;
      first = split;
    }
  }

  const double *sums_ = nullptr, *masses_ = nullptr;
  std::vector<double> now_, before_;
  std::vector<int32_t> splits_;
  int32_t *layer_ = nullptr, *below_ = nullptr;
};

// Means of the clusters; one without importance takes the mean of the one before it.
void find_means(const Sorted& sorted, const std::vector<int64_t>& ends, double* table,
                double* masses) {
  const size_t clusters = ends.size();
  int64_t begin = 0;
  size_t known = clusters;
  for (size_t cluster = 0; cluster < clusters; ++cluster) {
    const size_t from = static_cast<size_t>(begin), to = static_cast<size_t>(ends[cluster]);
    masses[cluster] = sorted.masses()[to] - sorted.masses()[from];
    if (to > from && masses[cluster] > 0.0) {
      table[cluster] = (sorted.sums()[to] - sorted.sums()[from]) / masses[cluster];
      if (known == clusters) std::fill(table, table + cluster, table[cluster]);
      known = cluster;
    } else {
      masses[cluster] = 0.0;
      table[cluster] = known == clusters ? 0.0 : table[known];
    }
    begin = ends[cluster];
  }
}

// Every number to its nearest mean, means anew, until nothing moves: with sums at hand a round
// takes a search for each border.
void improve(const Sorted& sorted, std::vector<int64_t>& ends, double* table, double* masses) {
  constexpr int kRounds = 1000;
  for (int round = 0; round < kRounds; ++round) {
    bool moved = false;
    for (size_t cluster = 0; cluster + 1 < ends.size(); ++cluster) {
      const int64_t end = sorted.up_to(0.5 * (table[cluster] + table[cluster + 1]));
      moved = moved || end != ends[cluster];
      ends[cluster] = end;
    }
    if (!moved) return;
    find_means(sorted, ends, table, masses);
  }
}

// One worker's memory.
struct Fitter {
  void fit(const float* values, const float* importance, int64_t count, int entries, int64_t most,
           double* table, double* masses) {
    sorted.load(values, importance, count);
    if (count <= most) {
      layers.solve(sorted.sums(), sorted.masses(), entries, ends);
      find_means(sorted, ends, table, masses);
      return;
    }
    sums.clear();
    joined.clear();
    for (int64_t run = 0; run <= most; ++run) {
      const size_t place = static_cast<size_t>(count * run / most);
      sums.push_back(sorted.sums()[place]);
      joined.push_back(sorted.masses()[place]);
    }
    layers.solve(sums, joined, entries, ends);
    for (int64_t& end : ends) end = count * end / most;
    find_means(sorted, ends, table, masses);
    improve(sorted, ends, table, masses);
  }

  Sorted sorted;
  Layers layers;
  std::vector<int64_t> ends;
  std::vector<double> sums, joined;
};

}  // namespace

void fit_tables(const Numbers& numbers, int entries, int64_t most, double* tables, double* masses,
                int threads) {
  for_groups(
      numbers, threads, [] { return Fitter(); },
      [&](Fitter& fitter, int64_t row, int64_t group, int64_t first, int64_t count) {
        const int64_t at = (row * numbers.groups() + group) * entries;
        fitter.fit(numbers.values + row * numbers.stride + first,
                   numbers.importance + row * numbers.importance_stride + first, count, entries,
                   most, tables + at, masses + at);
      });
}

}  // namespace onnxq
