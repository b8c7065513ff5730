#include "histogram.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "parallel.h"

namespace onnxq {
namespace {

constexpr int64_t kBlock = 4096;              // values worked on at a time
constexpr int64_t kPart = 1 << 18;            // fewer values than this do not pay for a thread
constexpr int64_t kFlush = int64_t{1} << 30;  // before a uint32 count can overflow

struct Range {
  float low, high;
  int32_t top;  // largest bit pattern of a magnitude
};

// Sixteen independent ranges, so that the loop has no chain to wait for.
Range range_of(const float* values, int64_t count) {
  constexpr int kWidth = 16;
  float low[kWidth], high[kWidth];
  int32_t top[kWidth];
  for (int lane = 0; lane < kWidth; ++lane) {
    low[lane] = high[lane] = values[0];
    top[lane] = 0;
  }
  const auto widen = [&](float value, int lane) {
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits &= 0x7fffffff;
    low[lane] = value < low[lane] ? value : low[lane];
    high[lane] = value > high[lane] ? value : high[lane];
    top[lane] = bits > top[lane] ? bits : top[lane];
  };
  int64_t index = 0;
  for (; index + kWidth <= count; index += kWidth) {
    for (int lane = 0; lane < kWidth; ++lane) widen(values[index + lane], lane);
  }
  for (; index < count; ++index) widen(values[index], 0);
  return {*std::min_element(low, low + kWidth), *std::max_element(high, high + kWidth),
          *std::max_element(top, top + kWidth)};
}

// Two tables, so that runs of equal values do not wait for their own store. The last slot of each
// counts zeros.
struct Counts {
  std::vector<uint32_t> even, odd;
};

void count_block(const float* values, int64_t count, float inverse_width, int half_bins,
                 Counts& counts) {
  int32_t slots[kBlock];
  const int32_t zero_slot = 2 * half_bins;
  for (int64_t index = 0; index < count; ++index) {
    const float value = values[index];
    const float magnitude = value < 0.0f ? -value : value;
    const int32_t step = static_cast<int32_t>(magnitude * inverse_width);
    const int32_t slot = value < 0.0f ? half_bins - 1 - step : half_bins + step;
    slots[index] = value == 0.0f ? zero_slot : slot;
  }
  int64_t index = 0;
  for (; index + 2 <= count; index += 2) {
    ++counts.even[static_cast<size_t>(slots[index])];
    ++counts.odd[static_cast<size_t>(slots[index + 1])];
  }
  if (index < count) ++counts.even[static_cast<size_t>(slots[index])];
}

void flush(Counts& counts, int64_t* totals) {
  for (size_t slot = 0; slot < counts.even.size(); ++slot) {
    totals[slot] += static_cast<int64_t>(counts.even[slot]) + counts.odd[slot];
    counts.even[slot] = counts.odd[slot] = 0;
  }
}

}  // namespace

bool find_range(const float* values, int64_t count, int threads, float* low, float* high) {
  const int workers = worker_count(count / kPart, threads);
  std::vector<Range> ranges(static_cast<size_t>(workers));
  split(count, workers, [&](int worker, int64_t begin, int64_t end) {
    ranges[static_cast<size_t>(worker)] = range_of(values + begin, end - begin);
  });
  Range all = ranges[0];
  for (const Range& range : ranges) {
    all = {std::min(all.low, range.low), std::max(all.high, range.high),
           std::max(all.top, range.top)};
  }
  *low = all.low;
  *high = all.high;
  return all.top < 0x7f800000;
}

void add_to_bins(const float* values, int64_t count, float inverse_width, int half_bins,
                 int threads, int64_t* bins, int64_t* zeros) {
  const int workers = worker_count(count / kPart, threads);
  const size_t slots = 2 * static_cast<size_t>(half_bins) + 1;
  std::vector<Counts> counts(static_cast<size_t>(workers));
  std::vector<int64_t> totals(slots * static_cast<size_t>(workers));
  for (Counts& own : counts) {
    own.even.assign(slots, 0);
    own.odd.assign(slots, 0);
  }
  split(count, workers, [&](int worker, int64_t begin, int64_t end) {
    Counts& own = counts[static_cast<size_t>(worker)];
    int64_t* own_totals = totals.data() + slots * static_cast<size_t>(worker);
    int64_t pending = 0;
    for (int64_t index = begin; index < end; index += kBlock) {
      const int64_t block = std::min(kBlock, end - index);
      count_block(values + index, block, inverse_width, half_bins, own);
      if ((pending += block) >= kFlush) {
        flush(own, own_totals);
        pending = 0;
      }
    }
    flush(own, own_totals);
  });
  for (size_t index = 0; index < totals.size(); ++index) {
    const size_t slot = index % slots;
    (slot + 1 == slots ? *zeros : bins[slot]) += totals[index];
  }
}

}  // namespace onnxq
