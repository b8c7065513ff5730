#include <algorithm>
#include <cmath>

#include "tables_groups.h"

namespace onnxq {
namespace {

constexpr int64_t kRun = 256;  // numbers rounded at once

// How many of the borders each number is above.
void count_borders(const float* numbers, int64_t count, const float* borders, int entries,
                   int32_t* codes) {
  std::fill(codes, codes + count, 0);
  for (int entry = 0; entry + 1 < entries; ++entry) {
    const float border = borders[entry];
    for (int64_t index = 0; index < count; ++index) codes[index] += numbers[index] > border ? 1 : 0;
  }
}

// Middles between neighbours of a table.
void find_borders(const float* table, int entries, float* borders) {
  for (int entry = 0; entry + 1 < entries; ++entry) {
    borders[entry] = 0.5f * (table[entry] + table[entry + 1]);
  }
}

// float16's nearest value, ties to even, kept as float32; the sign is kept and 0 stays 0.
float to_half(float value) {
  const float size = std::fabs(value);
  if (!(size > 0.0f)) return value;
  int exponent = 0;
  std::frexp(size, &exponent);
  const float unit = std::ldexp(1.0f, std::max(exponent - 11, -24));
  const float rounded = std::nearbyint(size / unit) * unit;
  return std::copysign(std::min(rounded, 65504.0f), value);
}

double cost_of(const float* values, const float* importance, int64_t count, const float* table,
               const float* borders, int entries, float scale) {
  double total = 0.0;
  float scaled[kRun];
  int32_t codes[kRun];
  const float inverse = 1.0f / scale;
  for (int64_t begin = 0; begin < count; begin += kRun) {
    const int64_t here = std::min(kRun, count - begin);
    for (int64_t index = 0; index < here; ++index) scaled[index] = values[begin + index] * inverse;
    count_borders(scaled, here, borders, entries, codes);
    for (int64_t index = 0; index < here; ++index) {
      const double error = values[begin + index] - static_cast<double>(table[codes[index]]) * scale;
      total += importance[begin + index] * error * error;
    }
  }
  return total;
}

}  // namespace

void nearest_entries(const Numbers& numbers, const Tables& tables, uint8_t* codes, int threads) {
  const auto nothing = [] { return 0; };
  for_groups(numbers, threads, nothing,
             [&](int, int64_t row, int64_t group, int64_t first, int64_t count) {
               float borders[kMostEntries], scaled[kRun];
               int32_t found[kRun];
               find_borders(tables.entries + row * tables.row + group * tables.group, tables.count,
                            borders);
               const float scale =
                   tables.scales[row * tables.scale_row + group * tables.scale_group];
               const float inverse = 1.0f / scale;
               const float* values = numbers.values + row * numbers.stride + first;
               uint8_t* out = codes + row * numbers.columns + first;
               for (int64_t begin = 0; begin < count; begin += kRun) {
                 const int64_t here = std::min(kRun, count - begin);
                 for (int64_t index = 0; index < here; ++index) {
                   scaled[index] = values[begin + index] * inverse;
                 }
                 count_borders(scaled, here, borders, tables.count, found);
                 for (int64_t index = 0; index < here; ++index) {
                   out[begin + index] = static_cast<uint8_t>(found[index]);
                 }
               }
             });
}

void search_scales(const Numbers& numbers, const float* table, int count, const float* factors,
                   int factor_count, int signs, float* scales, double* costs, int threads) {
  float borders[kMostEntries];
  find_borders(table, count, borders);
  const float widest = std::max(std::fabs(table[0]), std::fabs(table[count - 1]));
  const auto nothing = [] { return 0; };
  for_groups(
      numbers, threads, nothing, [&](int, int64_t row, int64_t group, int64_t first, int64_t size) {
        const float* values = numbers.values + row * numbers.stride + first;
        const float* importance = numbers.importance + row * numbers.importance_stride + first;
        float most = 0.0f;
        for (int64_t index = 0; index < size; ++index) {
          most = std::max(most, std::fabs(values[index]));
        }
        float best = 1.0f;
        double least = INFINITY;
        for (int step = 0; step < factor_count * signs; ++step) {
          const float sign = step < factor_count ? 1.0f : -1.0f;
          const float scale = sign * to_half(factors[step % factor_count] * most / widest);
          if (scale == 0.0f) continue;
          const double cost = cost_of(values, importance, size, table, borders, count, scale);
          if (cost < least) {
            least = cost;
            best = scale;
          }
        }
        const int64_t at = row * numbers.groups() + group;
        scales[at] = best;
        costs[at] = least;
      });
}

}  // namespace onnxq
