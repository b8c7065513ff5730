// Runs every kernel over odd shapes on exactly sized buffers, for the sanitizers, and checks that
// instruction sets, threads and layouts give the same bytes. The values themselves are judged
// against NumPy by tests/numerics.

#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <vector>

#include "../clipping.h"
#include "../column_rounding.h"
#include "../coordinate_descent.h"
#include "../entropy.h"
#include "../hessian_factor.h"
#include "../histogram.h"
#include "../rounding.h"
#include "../scale_search.h"

namespace {

int failures = 0;

void expect(bool holds, const char* what, int64_t rows, int64_t columns, int64_t group, int bits) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "%s differs: %lld x %lld, group %lld, %d bits\n", what,
               static_cast<long long>(rows), static_cast<long long>(columns),
               static_cast<long long>(group), bits);
}

std::vector<float> values(int64_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> drawn(static_cast<size_t>(count));
  for (size_t index = 0; index < drawn.size(); ++index) {
    drawn[index] = index % 5 == 3 ? 0.0f : normal(engine) * (index % 11 == 7 ? 1e-40f : 1.0f);
  }
  return drawn;
}

struct Output {
  std::vector<uint8_t> codes, zeros;
  std::vector<float> scales;
  std::vector<double> noise, signal;
  onnxq::RoundingStatus status = onnxq::RoundingStatus::kOk;
  bool operator==(const Output& other) const {
    return codes == other.codes && zeros == other.zeros && scales == other.scales &&
           noise == other.noise && signal == other.signal && status == other.status;
  }
};

Output round(const onnxq::Weight& weight, const onnxq::Rounding& how, bool packed, int threads,
             const onnxq::TileKernels& kernels) {
  const int64_t groups = (weight.columns + how.group - 1) / how.group;
  const int64_t row_codes = packed ? groups * (how.group * how.levels.bits / 8) : weight.columns;
  const int64_t row_zeros = packed ? (groups * how.levels.bits + 7) / 8 : groups;
  Output out;
  out.codes.resize(static_cast<size_t>(weight.rows * row_codes));
  out.noise.resize(static_cast<size_t>(weight.rows));
  out.signal.resize(static_cast<size_t>(weight.rows));
  out.scales.resize(static_cast<size_t>(weight.rows * groups));
  if (!how.levels.symmetric) out.zeros.resize(static_cast<size_t>(weight.rows * row_zeros));
  out.status = onnxq::round_groups(weight, how,
                                   {out.codes.data(), out.scales.data(), out.zeros.data(),
                                    out.noise.data(), out.signal.data(), packed},
                                   threads, kernels);
  return out;
}

void test_rounding(int64_t rows, int64_t columns, int64_t group, int bits) {
  const float shrink[] = {1.0f, 0.75f, 0.5f};
  const std::vector<float> straight = values(rows * columns, static_cast<unsigned>(rows + columns));
  std::vector<float> turned(straight.size());
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      turned[static_cast<size_t>(column * rows + row)] =
          straight[static_cast<size_t>(row * columns + column)];
    }
  }
  const onnxq::Weight layouts[] = {{straight.data(), rows, columns, columns, 1},
                                   {turned.data(), rows, columns, 1, rows}};
  const bool can_pack = (bits == 2 || bits == 4 || bits == 8) && group % 8 == 0;
  for (int variant = 0; variant < 16; ++variant) {
    const bool symmetric = variant & 1, half = variant & 2, packed = variant & 4;
    const onnxq::Levels levels = {bits, symmetric, symmetric && half, half};
    const onnxq::Rounding how = {levels, group, shrink, variant & 8 ? 3 : 1};
    if (packed && !can_pack) continue;
    const Output wanted = round(layouts[0], how, packed, 1, *onnxq::tile_kernels_generic());
    for (const onnxq::TileKernels* kernels :
         {onnxq::tile_kernels_generic(), onnxq::tile_kernels_avx2(),
          onnxq::tile_kernels_avx512()}) {
      if (!kernels) continue;
      for (const onnxq::Weight& layout : layouts) {
        expect(round(layout, how, packed, 3, *kernels) == wanted, kernels->name, rows, columns,
               group, bits);
      }
    }
  }
}

struct Sums {
  std::vector<double> costs, moments;
  std::vector<uint8_t> codes;
  bool finite = false;
  bool operator==(const Sums& other) const {
    return costs == other.costs && moments == other.moments && codes == other.codes &&
           finite == other.finite;
  }
};

Sums sum_up(const onnxq::Weight& weight, onnxq::Levels levels, onnxq::Grids grids,
            const std::vector<float>& importance, bool robust, int threads,
            const onnxq::TileKernels& kernels) {
  const int64_t groups = (weight.columns + grids.group - 1) / grids.group;
  const size_t size = static_cast<size_t>(weight.rows * groups);
  Sums sums;
  sums.costs.resize(static_cast<size_t>(grids.count) * size);
  sums.moments.resize(3 * size);
  sums.codes.resize(static_cast<size_t>(weight.rows * weight.columns));
  onnxq::group_costs(weight, levels, grids, importance.data(), robust, sums.costs.data(), threads,
                     kernels);
  grids.count = 1;
  onnxq::group_moments(weight, levels, grids, importance.data(), robust ? 0.1f : 0.0f,
                       sums.moments.data(), threads, kernels);
  sums.finite = onnxq::round_to(weight, levels, grids, sums.codes.data(), threads, kernels);
  return sums;
}

void test_grids(int64_t rows, int64_t columns, int64_t group, int bits) {
  const std::vector<float> drawn = values(rows * columns, 11);
  const onnxq::Weight weight = {drawn.data(), rows, columns, columns, 1};
  const std::vector<float> importance(static_cast<size_t>(columns), 0.5f);
  const size_t size = static_cast<size_t>(2 * rows * ((columns + group - 1) / group));
  std::vector<float> scales(size), zeros(size, 1.0f);
  for (size_t index = 0; index < size; ++index) scales[index] = 0.1f * (1.0f + index % 7);
  for (int variant = 0; variant < 4; ++variant) {
    const bool symmetric = variant & 1, robust = variant & 2;
    const onnxq::Levels levels = {bits, symmetric, false, false};
    const onnxq::Grids grids = {scales.data(), symmetric ? nullptr : zeros.data(), group, 2};
    const Sums wanted =
        sum_up(weight, levels, grids, importance, robust, 1, *onnxq::tile_kernels_generic());
    expect(wanted.finite, "finite", rows, columns, group, bits);
    for (const onnxq::TileKernels* kernels :
         {onnxq::tile_kernels_generic(), onnxq::tile_kernels_avx2(),
          onnxq::tile_kernels_avx512()}) {
      if (!kernels) continue;
      expect(sum_up(weight, levels, grids, importance, robust, 3, *kernels) == wanted,
             kernels->name, rows, columns, group, bits);
    }
  }
}

void test_histogram(int64_t count) {
  const std::vector<float> drawn = values(count, 7);
  float low[2], high[2];
  std::vector<int64_t> bins[2];
  int64_t zeros[2] = {0, 0};
  for (int run = 0; run < 2; ++run) {
    const int threads = run ? 4 : 1;
    onnxq::find_range(drawn.data(), count, threads, &low[run], &high[run]);
    bins[run].assign(64, 0);
    onnxq::add_to_bins(drawn.data(), count, 4.0f, 32, threads, bins[run].data(), &zeros[run]);
  }
  expect(low[0] == low[1] && high[0] == high[1], "range", 1, count, 0, 0);
  expect(bins[0] == bins[1] && zeros[0] == zeros[1], "histogram", 1, count, 0, 0);
}

void test_searches(int64_t half, int levels) {
  std::vector<int64_t> bins(static_cast<size_t>(2 * half));
  std::mt19937 engine(3);
  for (int64_t& bin : bins) bin = static_cast<int64_t>(engine() % 50);
  std::vector<double> divergence[2];
  for (int run = 0; run < 2; ++run) {
    divergence[run].resize(static_cast<size_t>(half));
    onnxq::entropy_sweep(bins.data(), half, half / 2, 2 * half, levels, run ? 3 : 1,
                         divergence[run].data());
  }
  expect(divergence[0] == divergence[1], "entropy", 1, 2 * half, 0, levels);
  std::vector<double> centres(bins.size()), counts(bins.begin(), bins.end());
  for (size_t index = 0; index < bins.size(); ++index) centres[index] = 0.1 * (index + 1.0);
  const std::vector<double> scales = {0.1, 0.5, 3.0}, zeros = {0.0, 1.0, 2.0};
  std::vector<double> costs(3);
  onnxq::rounding_costs(centres.data(), counts.data(), static_cast<int64_t>(bins.size()),
                        scales.data(), zeros.data(), 3, 0, 15, costs.data());
  expect(costs[0] >= 0 && costs[1] >= 0 && costs[2] >= 0, "costs", 1, 2 * half, 0, 4);
}

// Every instruction set, thread count and block gives the codes and errors of one block at once.
template <class Stored, class Number>
void test_factor(int64_t size) {
  // A strong diagonal makes it positive definite; places run backwards, and one column is dead.
  std::vector<Stored> hessian(static_cast<size_t>(size * size));
  const std::vector<float> drawn = values(size * size, 9);
  std::vector<int64_t> places(static_cast<size_t>(size));
  std::vector<double> diagonal(static_cast<size_t>(size)), wanted_variances;
  std::vector<uint8_t> alive(static_cast<size_t>(size), 1);
  for (size_t index = 0; index < hessian.size(); ++index) hessian[index] = Stored(drawn[index]);
  for (size_t place = 0; place < places.size(); ++place) {
    places[place] = size - 1 - static_cast<int64_t>(place);
    diagonal[place] = 5.0 * static_cast<double>(size) + static_cast<double>(place);
  }
  alive[places.size() / 2] = size == 1;
  const onnxq::Hessian<Stored> of = {hessian.data(),  size,         places.data(),
                                     diagonal.data(), alive.data(), 0.125};
  std::vector<Number> wanted;
  for (const onnxq::ColumnKernels* kernels :
       {onnxq::column_kernels_generic(), onnxq::column_kernels_avx2(),
        onnxq::column_kernels_avx512()}) {
    if (!kernels) continue;
    for (const int threads : {1, 3}) {
      std::vector<Number> upper(static_cast<size_t>(size * size));
      std::vector<double> variances(static_cast<size_t>(size));
      double least = 0;
      const bool done = onnxq::factor_hessian(of, upper.data(), variances.data(), &least, threads,
                                              *kernels) == onnxq::Factored::kDone;
      if (wanted.empty()) {
        wanted = upper;
        wanted_variances = variances;
      }
      expect(done && least > 0 && upper == wanted && variances == wanted_variances, kernels->name,
             size, size, threads, 0);
    }
  }
}

void test_columns(int64_t rows, int64_t columns, int64_t block) {
  const std::vector<float> weight = values(rows * columns, 5);
  std::vector<float> upper = values(columns * columns, 6);
  for (int64_t row = 0; row < columns; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      float& value = upper[static_cast<size_t>(row * columns + column)];
      value = row == column ? 1.0f : row < column ? value / 4 : 0.0f;
    }
  }
  const int64_t padded = (rows + onnxq::kLanes - 1) / onnxq::kLanes * onnxq::kLanes;
  const std::vector<float> scales(static_cast<size_t>(2 * padded), 0.25f);
  const std::vector<float> zeros(static_cast<size_t>(2 * padded), 7.0f);
  std::vector<int32_t> group(static_cast<size_t>(columns));
  for (size_t column = 0; column < group.size(); ++column) group[column] = column % 2;
  std::vector<uint8_t> wanted_codes;
  std::vector<float> wanted_errors;
  for (const onnxq::ColumnKernels* kernels :
       {onnxq::column_kernels_generic(), onnxq::column_kernels_avx2(),
        onnxq::column_kernels_avx512()}) {
    if (!kernels) continue;
    for (const int64_t step : {columns, block}) {
      std::vector<float> state(static_cast<size_t>(padded * columns));
      std::vector<uint8_t> codes(static_cast<size_t>(rows * columns));
      const onnxq::Columns of = {weight.data(), upper.data(), state.data(), rows, columns};
      const int threads = step == columns ? 1 : 3;
      for (int64_t begin = 0; begin < columns; begin += step) {
        const int64_t end = begin + step < columns ? begin + step : columns;
        std::vector<float> targets(static_cast<size_t>(rows * (end - begin)));
        onnxq::add_feedback(of, 0, begin, begin, end, threads, *kernels);
        onnxq::find_targets(of, begin, end, targets.data(), threads, *kernels);
        const onnxq::ScalarGrid grid = {scales.data(),        zeros.data(), padded,
                                        group.data() + begin, 0.0f,         15.0f};
        onnxq::round_columns(of, begin, end, grid, codes.data(), threads, *kernels);
      }
      if (wanted_codes.empty()) wanted_codes = codes, wanted_errors = state;
      expect(codes == wanted_codes && state == wanted_errors, kernels->name, rows, columns, step,
             4);
    }
  }
}

// A Gram matrix of few vectors: singular unless there are few columns.
std::vector<float> gram(int64_t columns, int64_t tokens) {
  const std::vector<float> inputs = values(tokens * columns, 5);
  std::vector<float> sums(static_cast<size_t>(columns * columns));
  for (int64_t left = 0; left < columns; ++left) {
    for (int64_t right = 0; right < columns; ++right) {
      float sum = 0.0f;
      for (int64_t token = 0; token < tokens; ++token) {
        sum += inputs[static_cast<size_t>(token * columns + left)] *
               inputs[static_cast<size_t>(token * columns + right)];
      }
      sums[static_cast<size_t>(left * columns + right)] = sum;
    }
  }
  return sums;
}

void test_descent(int64_t rows, int64_t columns, int64_t group, bool symmetric, bool greedy) {
  const std::vector<float> straight = values(rows * columns, 11), hessian = gram(columns, 9);
  std::vector<float> turned(straight.size());
  for (size_t cell = 0; cell < straight.size(); ++cell) {
    const size_t row = cell / static_cast<size_t>(columns);
    const size_t column = cell % static_cast<size_t>(columns);
    turned[column * static_cast<size_t>(rows) + row] = straight[cell];
  }
  const size_t groups = static_cast<size_t>((columns + group - 1) / group);
  const std::vector<float> scales(static_cast<size_t>(rows) * groups, 0.25f);
  const std::vector<uint8_t> zeros(scales.size(), 7);
  const int lowest = symmetric ? -8 : 0, highest = symmetric ? 7 : 15;
  onnxq::DescentProblem problem = {straight.data(),
                                   rows,
                                   columns,
                                   columns,
                                   1,
                                   hessian.data(),
                                   scales.data(),
                                   symmetric ? nullptr : zeros.data(),
                                   group,
                                   lowest,
                                   highest};
  std::vector<uint8_t> fused;  // what the first set with fused multiply-add finds
  for (const onnxq::DescentKernels* kernels :
       {onnxq::descent_kernels_generic(), onnxq::descent_kernels_avx2(),
        onnxq::descent_kernels_avx512()}) {
    if (!kernels) continue;
    std::vector<uint8_t> wanted(straight.size(), symmetric ? 0 : 7), again = wanted;
    problem.target = straight.data(), problem.row_stride = columns, problem.column_stride = 1;
    onnxq::descend(problem, {5, greedy, 1}, wanted.data(), *kernels);
    problem.target = turned.data(), problem.row_stride = 1, problem.column_stride = rows;
    onnxq::descend(problem, {5, greedy, 3}, again.data(), *kernels);
    expect(wanted == again, "descent", rows, columns, group, 4);
    bool within = true;
    for (uint8_t code : wanted) {
      const int value = symmetric ? static_cast<int8_t>(code) : code;
      within = within && value >= lowest && value <= highest;
    }
    expect(within, "range of descent", rows, columns, group, 4);
    if (kernels == onnxq::descent_kernels_generic()) continue;
    if (fused.empty()) fused = wanted;
    expect(fused == wanted, "descent of instruction sets", rows, columns, group, 4);
  }
}

}  // namespace

int main() {
  const int64_t shapes[][3] = {{1, 1, 1},     {1, 17, 16},  {3, 40, 24},     {63, 33, 32},
                               {64, 64, 64},  {65, 31, 8},  {130, 129, 128}, {7, 1100, 1024},
                               {2, 1030, 16}, {129, 5, 32}, {66, 513, 600}};
  for (const auto& shape : shapes) {
    for (int bits : {1, 2, 4, 5, 8}) {
      test_rounding(shape[0], shape[1], shape[2], bits);
      test_grids(shape[0], shape[1], shape[2], bits);
    }
  }
  test_grids(2050, 4099, 128, 4);  // worth several threads, which the shapes above are not
  for (int64_t count : {1, 2, 15, 16, 17, 4095, 4097, 1200003}) test_histogram(count);
  for (int64_t half : {1, 2, 7, 64, 301}) {
    for (int levels : {1, 2, 13, 255}) test_searches(half, levels);
  }
  for (int64_t size : {1, 2, 63, 64, 65, 130, 200}) {
    test_factor<float, float>(size);
    test_factor<double, double>(size);
    test_factor<float, double>(size);
    test_factor<double, float>(size);
  }
  for (const auto& shape : shapes) test_columns(shape[0], shape[1] % 300 + 1, shape[2] % 50 + 1);
  for (const auto& shape : shapes) {
    for (int variant = 0; variant < 4; ++variant) {
      test_descent(shape[0], shape[1] % 300 + 1, shape[2], variant & 1, variant & 2);
    }
  }
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
