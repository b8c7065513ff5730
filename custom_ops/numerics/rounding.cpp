#include "rounding.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "load_tile.h"
#include "parallel.h"

namespace onnxq {
namespace {

constexpr int32_t kInfinity = 0x7f800000;

struct Lanes {
  alignas(64) float low[kLanes], high[kLanes], base[kLanes], zero[kLanes], scale[kLanes];
  alignas(64) float trial[kLanes], best[kLanes], noise[kLanes], signal[kLanes];
  alignas(64) int32_t top[kLanes];
};

// What one thread works with.
struct Scratch {
  alignas(64) float tile[kTileColumns * kLanes];
  alignas(64) uint8_t codes[kTileColumns * kLanes];
  alignas(64) uint8_t packed[kTileColumns * kLanes / 2];
  Lanes lanes;
  std::vector<float> errors;  // [shrink_count][kLanes]
  bool not_finite = false, overflow = false;
};

// One panel of kLanes rows, group by group.
class Panel {
 public:
  Panel(const Weight& weight, const Rounding& how, const Rounded& out, const TileKernels& kernels,
        Scratch& scratch)
      : weight_(weight), how_(how), out_(out), kernels_(kernels), scratch_(scratch) {}

  // False when a value is not finite.
  bool run(int64_t row) {
    row_ = row;
    lanes_ = static_cast<int>(std::min<int64_t>(kLanes, weight_.rows - row));
    const int64_t groups = group_count();
    std::fill(out_.noise + row, out_.noise + row + lanes_, 0.0);
    std::fill(out_.signal + row, out_.signal + row + lanes_, 0.0);
    for (int64_t group = 0; group < groups; ++group) {
      begin_ = group * how_.group;
      // A short group is filled up with zeros, which change neither range nor error.
      end_ = out_.packed ? begin_ + how_.group : std::min(begin_ + how_.group, weight_.columns);
      loaded_ = -1;
      if (!find_range()) return false;
      choose_scale();
      store_scale(group, groups);
      store_codes(group, groups);
    }
    return true;
  }

 private:
  int64_t group_count() const { return (weight_.columns + how_.group - 1) / how_.group; }

  int chunk(int64_t column) const {
    return static_cast<int>(std::min<int64_t>(kTileColumns, end_ - column));
  }

  // Brings columns [column, column + chunk) of the panel into the tile, unless they are there.
  const float* load(int64_t column) {
    float* tile = scratch_.tile;
    if (loaded_ == column) return tile;
    loaded_ = column;
    load_tile(weight_, row_, lanes_, column, chunk(column), kernels_, tile);
    return tile;
  }

  bool find_range() {
    Lanes& lanes = scratch_.lanes;
    std::fill(lanes.low, lanes.low + kLanes, 0.0f);
    std::fill(lanes.high, lanes.high + kLanes, 0.0f);
    std::fill(lanes.top, lanes.top + kLanes, 0);
    for (int64_t column = begin_; column < end_; column += kTileColumns) {
      kernels_.range(load(column), chunk(column), lanes.low, lanes.high, lanes.top);
    }
    return *std::max_element(lanes.top, lanes.top + kLanes) < kInfinity;
  }

  void choose_scale() {
    Lanes& lanes = scratch_.lanes;
    const Levels levels = how_.levels;
    kernels_.plain_scale(lanes.low, lanes.high, levels, lanes.base, lanes.zero);
    kernels_.settle(lanes.base, how_.shrink[0], levels, lanes.scale);
    for (float scale : lanes.scale) scratch_.overflow |= !std::isfinite(scale);
    if (how_.shrink_count == 1) return;
    std::vector<float>& errors = scratch_.errors;
    std::fill(errors.begin(), errors.end(), 0.0f);
    for (int64_t column = begin_; column < end_; column += kTileColumns) {
      const float* tile = load(column);
      for (int index = 0; index < how_.shrink_count; ++index) {
        kernels_.settle(lanes.base, how_.shrink[index], levels, lanes.trial);
        kernels_.add_error(tile, chunk(column), lanes.trial, lanes.zero, levels,
                           errors.data() + index * kLanes);
      }
    }
    std::fill(lanes.best, lanes.best + kLanes, INFINITY);
    for (int index = 0; index < how_.shrink_count; ++index) {
      kernels_.settle(lanes.base, how_.shrink[index], levels, lanes.trial);
      const float* error = errors.data() + index * kLanes;
      for (int lane = 0; lane < kLanes; ++lane) {
        const bool better = error[lane] < lanes.best[lane];
        lanes.best[lane] = better ? error[lane] : lanes.best[lane];
        lanes.scale[lane] = better ? lanes.trial[lane] : lanes.scale[lane];
      }
    }
  }

  void store_scale(int64_t group, int64_t groups) {
    const Lanes& lanes = scratch_.lanes;
    const int bits = how_.levels.bits;
    const int64_t packed_row = (groups * bits + 7) / 8;
    for (int lane = 0; lane < lanes_; ++lane) {
      const int64_t row = row_ + lane;
      out_.scales[row * groups + group] = lanes.scale[lane];
      if (how_.levels.symmetric) continue;
      const int zero = static_cast<int>(lanes.zero[lane]);
      if (out_.packed) {
        const int64_t bit = group * bits;
        out_.zeros[row * packed_row + bit / 8] |= static_cast<uint8_t>(zero << (bit % 8));
      } else {
        out_.zeros[row * groups + group] = static_cast<uint8_t>(zero);
      }
    }
  }

  void quantize(int64_t column, int columns, int offset) {
    Lanes& lanes = scratch_.lanes;
    std::fill(lanes.noise, lanes.noise + kLanes, 0.0f);
    std::fill(lanes.signal, lanes.signal + kLanes, 0.0f);
    kernels_.quantize(load(column), columns, lanes.scale, lanes.zero, how_.levels, offset,
                      scratch_.codes, lanes.noise, lanes.signal);
    for (int lane = 0; lane < lanes_; ++lane) {
      out_.noise[row_ + lane] += lanes.noise[lane];
      out_.signal[row_ + lane] += lanes.signal[lane];
    }
  }

  void store_codes(int64_t group, int64_t groups) {
    const int bits = how_.levels.bits;
    const int offset = out_.packed && how_.levels.symmetric ? 1 << (bits - 1) : 0;
    const int64_t blob = how_.group * bits / 8;
    for (int64_t column = begin_; column < end_; column += kTileColumns) {
      const int columns = chunk(column);
      quantize(column, columns, offset);
      if (!out_.packed) {
        kernels_.scatter(scratch_.codes, columns, lanes_,
                         out_.codes + row_ * weight_.columns + column, weight_.columns);
        continue;
      }
      uint8_t* out = out_.codes + (row_ * groups + group) * blob + (column - begin_) * bits / 8;
      const uint8_t* bytes = scratch_.codes;
      if (bits < 8) {
        kernels_.pack(scratch_.codes, columns, bits, scratch_.packed);
        bytes = scratch_.packed;
      }
      kernels_.scatter(bytes, columns * bits / 8, lanes_, out, groups * blob);
    }
  }

  const Weight& weight_;
  const Rounding& how_;
  const Rounded& out_;
  const TileKernels& kernels_;
  Scratch& scratch_;
  int64_t row_ = 0, begin_ = 0, end_ = 0, loaded_ = -1;
  int lanes_ = 0;
};

}  // namespace

RoundingStatus round_groups(const Weight& weight, const Rounding& how, const Rounded& out,
                            int threads, const TileKernels& kernels) {
  const int64_t panels = (weight.rows + kLanes - 1) / kLanes;
  const int64_t numbers = weight.rows * weight.columns * how.shrink_count;
  const int workers = worker_count(panels, threads, numbers);
  std::vector<std::unique_ptr<Scratch>> scratch;
  for (int worker = 0; worker < workers; ++worker) {
    scratch.push_back(std::make_unique<Scratch>());
    scratch.back()->errors.resize(static_cast<size_t>(how.shrink_count) * kLanes);
  }
  split(panels, workers, [&](int worker, int64_t begin, int64_t end) {
    Scratch& own = *scratch[static_cast<size_t>(worker)];
    Panel panel(weight, how, out, kernels, own);
    for (int64_t index = begin; index < end && !own.not_finite; ++index) {
      own.not_finite = !panel.run(index * kLanes);
    }
  });
  bool overflow = false;
  for (const auto& own : scratch) {
    if (own->not_finite) return RoundingStatus::kNotFinite;
    overflow |= own->overflow;
  }
  return overflow ? RoundingStatus::kScaleOverflow : RoundingStatus::kOk;
}

}  // namespace onnxq
