#include "e8p_nearest.h"

#include <vector>

#include "../numerics/parallel.h"
#include "e8p_book.h"

namespace onnxq {
namespace {

// How the whole numbers of two stages make a weight: (first · p + second · r) · scale / unit.
struct Stages {
  E8pGains gains;
  float ratio;  // residuals are enlarged by it
  float first, second, unit;
};

Stages stages_of(int bits) {
  if (bits == 2) return {kE8pGains, 0.0f, 1.0f, 0.0f, kE8pGains.unit};
  constexpr E8pGains kPlain = {1, 1, 4.0f};
  if (bits == 3) return {kPlain, 2.0f, 1.0f, 1.0f, 4.0f};  // the one-bit book counts in halves
  return {kPlain, 3.5f, 7.0f, 2.0f, 28.0f};
}

using Block = float[kE8pWidth * kE8pLanes];

// Sixteen vectors at a time of a run of rows.
class Rounder {
 public:
  Rounder(const E8pWeight& weight, const E8pNearest& kernels)
      : weight_(weight), kernels_(kernels), book_(e8p_book()), stages_(stages_of(weight.bits)) {}

  // visit(index, lane, codes, point) for every vector of rows [begin, end), index counting all
  // vectors of the weight, point in units at [place * kE8pLanes + lane].
  template <class Visit>
  void each(int64_t begin, int64_t end, const Visit& visit) const {
    for (int64_t first = begin * weight_.vectors; first < end * weight_.vectors;
         first += kE8pLanes) {
      const int64_t left = end * weight_.vectors - first;
      const int lanes = left < kE8pLanes ? static_cast<int>(left) : kE8pLanes;
      Block x = {}, point;
      uint16_t codes[2 * kE8pLanes];
      for (int lane = 0; lane < lanes; ++lane) {
        const float* vector = weight_.values + (first + lane) * kE8pWidth;
        const float scale = weight_.scales[(first + lane) / weight_.vectors];
        const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        for (int place = 0; place < kE8pWidth; ++place) {
          x[place * kE8pLanes + lane] = vector[place] * inverse;
        }
      }
      round(x, codes, point);
      for (int lane = 0; lane < lanes; ++lane) visit(first + lane, lane, codes, point);
    }
  }

  float unit() const { return 1.0f / stages_.unit; }

 private:
  void round(const Block& x, uint16_t* codes, Block& point) const {
    find(x, codes, point);
    if (weight_.bits == 2) return;
    Block residual, second;
    for (int at = 0; at < kE8pWidth * kE8pLanes; ++at) {
      residual[at] = (x[at] - point[at] / stages_.gains.unit) * stages_.ratio;
    }
    uint16_t* behind = codes + kE8pLanes;
    if (weight_.bits == 4) {
      find(residual, behind, second);
    } else {
      kernels_.bit(residual, second);
      for (int lane = 0; lane < kE8pLanes; ++lane) behind[lane] = code_of(second + lane);
    }
    for (int at = 0; at < kE8pWidth * kE8pLanes; ++at) {
      point[at] = stages_.first * point[at] + stages_.second * second[at];
    }
  }

  void find(const Block& x, uint16_t* codes, Block& point) const {
    int32_t signs[kE8pLanes], threes[kE8pLanes], fives[kE8pLanes], shift[kE8pLanes];
    kernels_.e8p(x, stages_.gains, point, signs, threes, fives, shift);
    for (int lane = 0; lane < kE8pLanes; ++lane) {
      int pattern = book_.pattern_of_threes[threes[lane]];
      if (fives[lane] != 0) {
        const int five = __builtin_ctz(static_cast<unsigned>(fives[lane]));
        const unsigned single = static_cast<unsigned>(threes[lane] ^ fives[lane]);
        pattern = five * 8 + (single != 0 ? __builtin_ctz(single) : five);
      }
      codes[lane] = static_cast<uint16_t>(pattern << 8 | shift[lane] << 7 | (signs[lane] & 0x7f));
    }
  }

  // The number of a point of the one-bit book, given in halves at every kE8pLanes-th place.
  static uint16_t code_of(const float* point) {
    int code = 0, pair = 128, first = -1;
    for (int place = 0; place < kE8pWidth; ++place) {
      const int value = static_cast<int>(point[place * kE8pLanes]);
      if (value == 1 || value == -1) {
        if (place < 7) code |= (value < 0 ? 1 : 0) << place;
        continue;
      }
      if (value == 0) continue;
      if (value == 4 || value == -4) return static_cast<uint16_t>((value > 0 ? 241 : 249) + place);
      const int sign = value < 0 ? 1 : 0;
      if (first < 0) {
        first = place;
        pair += 4 * (place * (2 * kE8pWidth - 1 - place) / 2) + sign;
      } else {
        return static_cast<uint16_t>(pair + 4 * (place - first - 1) + 2 * sign);
      }
    }
    const bool halves = point[0] == 1.0f || point[0] == -1.0f;
    return static_cast<uint16_t>(halves ? code : 240);
  }

  const E8pWeight& weight_;
  const E8pNearest& kernels_;
  const E8pBook& book_;
  Stages stages_;
};

}  // namespace

void e8p_round(const E8pWeight& weight, uint16_t* codes, float* points, int threads,
               const E8pNearest& kernels) {
  const Rounder rounder(weight, kernels);
  const int stages = weight.bits == 2 ? 1 : 2;
  const int workers = worker_count(weight.rows, threads);
  split(weight.rows, workers, [&](int, int64_t begin, int64_t end) {
    rounder.each(begin, end,
                 [&](int64_t index, int lane, const uint16_t* found, const float* point) {
                   for (int stage = 0; stage < stages; ++stage) {
                     codes[index * stages + stage] = found[stage * kE8pLanes + lane];
                   }
                   const float scale = weight.scales[index / weight.vectors] * rounder.unit();
                   for (int place = 0; place < kE8pWidth; ++place) {
                     points[index * kE8pWidth + place] = point[place * kE8pLanes + lane] * scale;
                   }
                 });
  });
}

void e8p_costs(const E8pWeight& weight, const float* importance, double* costs, int threads,
               const E8pNearest& kernels) {
  const Rounder rounder(weight, kernels);
  const int workers = worker_count(weight.rows, threads);
  split(weight.rows, workers, [&](int, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) costs[row] = 0.0;
    rounder.each(begin, end, [&](int64_t index, int lane, const uint16_t*, const float* point) {
      const float* vector = weight.values + index * kE8pWidth;
      const float* weights = importance + index % weight.vectors * kE8pWidth;
      const float scale = weight.scales[index / weight.vectors] * rounder.unit();
      float sum = 0.0f;
      for (int place = 0; place < kE8pWidth; ++place) {
        const float error = vector[place] - point[place * kE8pLanes + lane] * scale;
        sum += error * error * weights[place];
      }
      costs[index / weight.vectors] += static_cast<double>(sum);
    });
  });
}

}  // namespace onnxq
