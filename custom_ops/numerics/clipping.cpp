#include "clipping.h"

namespace onnxq {

void rounding_costs(const double* values, const double* counts, int64_t size, const double* scales,
                    const double* zeros, int64_t candidates, int lowest, int highest,
                    double* costs) {
  constexpr double kRounder = 0x1.8p52;  // adding it rounds to the nearest whole number
  constexpr int kWidth = 4;              // independent sums
  for (int64_t candidate = 0; candidate < candidates; ++candidate) {
    const double scale = scales[candidate];
    const double low = lowest - zeros[candidate], high = highest - zeros[candidate];
    const auto cost = [=](int64_t index) {
      double steps = values[index] / scale;
      steps = steps < low ? low : steps;
      steps = steps > high ? high : steps;
      const double gap = ((steps + kRounder) - kRounder) * scale - values[index];
      return gap * gap * counts[index];
    };
    double sums[kWidth] = {};
    int64_t index = 0;
    for (; index + kWidth <= size; index += kWidth) {
      for (int lane = 0; lane < kWidth; ++lane) sums[lane] += cost(index + lane);
    }
    for (; index < size; ++index) sums[0] += cost(index);
    costs[candidate] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
}

}  // namespace onnxq
