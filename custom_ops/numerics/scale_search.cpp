#include "scale_search.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "load_tile.h"
#include "parallel.h"

namespace onnxq {
namespace {

constexpr int32_t kInfinity = 0x7f800000;

struct Scratch {
  alignas(64) float tile[kTileColumns * kLanes];
  alignas(64) uint8_t codes[kTileColumns * kLanes];
  alignas(64) float scale[kLanes], zero[kLanes], low[kLanes], high[kLanes];
  alignas(64) float sums[3][kLanes];
  alignas(64) int32_t top[kLanes];
};

// Where a tile lies in its weight.
struct Piece {
  int64_t row, column, group;
  int lanes, columns;
};

// Calls visit(scratch, piece) for every tile, each panel of rows on one thread and its tiles from
// left to right.
template <class Visit>
void for_tiles(const Weight& weight, const Grids& grids, int threads, const TileKernels& kernels,
               const Visit& visit) {
  const int64_t panels = (weight.rows + kLanes - 1) / kLanes;
  const int64_t group_size = grids.group;
  const int64_t groups = (weight.columns + group_size - 1) / group_size;
  const int64_t numbers = grids.count * weight.rows * weight.columns;
  split(panels, worker_count(panels, threads, numbers), [&](int, int64_t begin, int64_t end) {
    const auto scratch = std::make_unique<Scratch>();
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t row = panel * kLanes;
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, weight.rows - row));
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t last = std::min((group + 1) * group_size, weight.columns);
        for (int64_t column = group * group_size; column < last; column += kTileColumns) {
          const int columns = static_cast<int>(std::min<int64_t>(kTileColumns, last - column));
          load_tile(weight, row, lanes, column, columns, kernels, scratch->tile);
          visit(*scratch, Piece{row, column, group, lanes, columns});
        }
      }
    }
  });
}

// Scales and zero points of the lanes of a piece, in the grid that starts at `offset`.
void load_grid(const Grids& grids, int64_t offset, int64_t groups, const Piece& piece,
               Scratch& scratch) {
  std::fill(scratch.scale, scratch.scale + kLanes, 1.0f);
  std::fill(scratch.zero, scratch.zero + kLanes, 0.0f);
  for (int lane = 0; lane < piece.lanes; ++lane) {
    const int64_t place = offset + (piece.row + lane) * groups + piece.group;
    scratch.scale[lane] = grids.scales[place];
    if (grids.zeros) scratch.zero[lane] = grids.zeros[place];
  }
}

}  // namespace

void group_costs(const Weight& weight, Levels levels, const Grids& grids, const float* importance,
                 bool robust, double* costs, int threads, const TileKernels& kernels) {
  const int64_t groups = (weight.columns + grids.group - 1) / grids.group;
  const int64_t size = weight.rows * groups;
  std::fill(costs, costs + grids.count * size, 0.0);
  for_tiles(weight, grids, threads, kernels, [&](Scratch& scratch, const Piece& piece) {
    for (int64_t index = 0; index < grids.count; ++index) {
      load_grid(grids, index * size, groups, piece, scratch);
      std::fill(scratch.sums[0], scratch.sums[0] + kLanes, 0.0f);
      kernels.add_cost(scratch.tile, piece.columns, importance + piece.column, scratch.scale,
                       scratch.zero, levels, robust, scratch.sums[0]);
      for (int lane = 0; lane < piece.lanes; ++lane) {
        costs[index * size + (piece.row + lane) * groups + piece.group] += scratch.sums[0][lane];
      }
    }
  });
}

void group_moments(const Weight& weight, Levels levels, const Grids& grids, const float* importance,
                   float threshold, double* moments, int threads, const TileKernels& kernels) {
  const int64_t groups = (weight.columns + grids.group - 1) / grids.group;
  const int64_t size = weight.rows * groups;
  std::fill(moments, moments + 3 * size, 0.0);
  for_tiles(weight, grids, threads, kernels, [&](Scratch& scratch, const Piece& piece) {
    load_grid(grids, 0, groups, piece, scratch);
    for (auto& sum : scratch.sums) std::fill(sum, sum + kLanes, 0.0f);
    kernels.add_moments(scratch.tile, piece.columns, importance + piece.column, scratch.scale,
                        scratch.zero, levels, threshold, scratch.sums[0], scratch.sums[1],
                        scratch.sums[2]);
    for (int moment = 0; moment < 3; ++moment) {
      for (int lane = 0; lane < piece.lanes; ++lane) {
        moments[moment * size + (piece.row + lane) * groups + piece.group] +=
            scratch.sums[moment][lane];
      }
    }
  });
}

bool round_to(const Weight& weight, Levels levels, const Grids& grids, uint8_t* codes, int threads,
              const TileKernels& kernels) {
  const int64_t groups = (weight.columns + grids.group - 1) / grids.group;
  std::atomic<bool> finite{true};
  for_tiles(weight, grids, threads, kernels, [&](Scratch& scratch, const Piece& piece) {
    std::fill(scratch.low, scratch.low + kLanes, 0.0f);
    std::fill(scratch.high, scratch.high + kLanes, 0.0f);
    std::fill(scratch.top, scratch.top + kLanes, 0);
    kernels.range(scratch.tile, piece.columns, scratch.low, scratch.high, scratch.top);
    if (*std::max_element(scratch.top, scratch.top + kLanes) >= kInfinity) finite = false;
    for (auto& sum : scratch.sums) std::fill(sum, sum + kLanes, 0.0f);
    load_grid(grids, 0, groups, piece, scratch);
    kernels.quantize(scratch.tile, piece.columns, scratch.scale, scratch.zero, levels, 0,
                     scratch.codes, scratch.sums[0], scratch.sums[1]);
    kernels.scatter(scratch.codes, piece.columns, piece.lanes,
                    codes + piece.row * weight.columns + piece.column, weight.columns);
  });
  return finite;
}

}  // namespace onnxq
