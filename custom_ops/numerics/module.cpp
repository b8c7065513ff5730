// The Python module onnxq.numerics._native. It checks shapes, lets go of the interpreter lock and
// calls the kernels, which know nothing of Python.

#include "bindings.h"
#include "clipping.h"
#include "column_rounding.h"
#include "coordinate_descent.h"
#include "entropy.h"
#include "hessian_factor.h"
#include "histogram.h"
#include "rounding.h"
#include "scale_search.h"

namespace {

int64_t length(const Strided<const float, 2>& array, size_t axis) {
  return static_cast<int64_t>(array.shape(axis));
}

onnxq::Weight weight_of(const Strided<const float, 2>& weight) {
  // The stride of an axis of length 1 is never taken, and NumPy leaves anything in it.
  const int64_t rows = length(weight, 0), columns = length(weight, 1);
  const int64_t column_stride = columns == 1 ? 1 : weight.stride(1);
  const int64_t other_stride = column_stride == 1 ? columns : 1;
  const onnxq::Weight source = {weight.data(), rows, columns,
                                rows == 1 ? other_stride : weight.stride(0), column_stride};
  require(source.rows > 0 && source.columns > 0, "the weight is empty");
  require(source.row_stride == 1 || source.column_stride == 1, "neither axis is contiguous");
  return source;
}

int round_weight(const Strided<const float, 2>& weight, uint8_t* codes,
                 const Array<float, 2>& scales, const Array<uint8_t, 2>& zeros,
                 const Array<double, 2>& squares, bool packed, int64_t group, onnxq::Levels levels,
                 const Array<const float, 1>& shrink, int threads) {
  const onnxq::Weight source = weight_of(weight);
  const int64_t rows = source.rows;
  require(group > 0 && levels.bits >= 1 && levels.bits <= 8, "bits or group out of range");
  require(shrink.shape(0) > 0, "no factors");
  const size_t groups = static_cast<size_t>((source.columns + group - 1) / group);
  require(scales.shape(0) == weight.shape(0) && scales.shape(1) == groups, "shape of scales");
  const size_t bits = static_cast<size_t>(levels.bits);
  const size_t zero_columns = packed ? (groups * bits + 7) / 8 : groups;
  require(levels.symmetric || (zeros.shape(0) == weight.shape(0) && zeros.shape(1) == zero_columns),
          "shape of zeros");
  require(squares.shape(0) == 2 && squares.shape(1) == weight.shape(0), "shape of squares");
  const onnxq::Rounding how = {levels, group, shrink.data(), static_cast<int>(shrink.shape(0))};
  const onnxq::Rounded out = {codes,          scales.data(),         zeros.data(),
                              squares.data(), squares.data() + rows, packed};
  nb::gil_scoped_release unlocked;
  return static_cast<int>(onnxq::round_groups(source, how, out, threads, onnxq::tile_kernels()));
}

int round_groups(const Strided<const float, 2>& weight, const Array<uint8_t, 2>& codes,
                 const Array<float, 2>& scales, const Array<uint8_t, 2>& zeros,
                 const Array<double, 2>& squares, int64_t group, int bits, bool symmetric,
                 bool positive, bool half_scales, const Array<const float, 1>& shrink,
                 int threads) {
  require(codes.shape(0) == weight.shape(0) && codes.shape(1) == weight.shape(1), "shape of codes");
  return round_weight(weight, codes.data(), scales, zeros, squares, false, group,
                      {bits, symmetric, positive, half_scales}, shrink, threads);
}

int pack_groups(const Strided<const float, 2>& weight, const Array<uint8_t, 3>& blobs,
                const Array<float, 2>& scales, const Array<uint8_t, 2>& zeros,
                const Array<double, 2>& squares, int64_t group, int bits, bool symmetric,
                bool positive, bool half_scales, const Array<const float, 1>& shrink, int threads) {
  require((bits == 2 || bits == 4 || bits == 8) && group > 0 && group % 8 == 0,
          "bits are not 2, 4 or 8, or the group is not a multiple of 8");
  require(blobs.shape(0) == scales.shape(0) && blobs.shape(1) == scales.shape(1) &&
              blobs.shape(2) == static_cast<size_t>(group * bits / 8),
          "shape of blobs");
  return round_weight(weight, blobs.data(), scales, zeros, squares, true, group,
                      {bits, symmetric, positive, half_scales}, shrink, threads);
}

onnxq::Grids grids_of(const Strided<const float, 2>& weight, const Array<const float, 3>& scales,
                      const Array<const float, 3>& zeros, int64_t group, onnxq::Levels levels) {
  require(group > 0 && levels.bits >= 1 && levels.bits <= 8, "bits or group out of range");
  const size_t groups = static_cast<size_t>((length(weight, 1) + group - 1) / group);
  require(scales.shape(1) == weight.shape(0) && scales.shape(2) == groups, "shape of scales");
  for (size_t axis = 0; axis < 3 && !levels.symmetric; ++axis) {
    require(zeros.shape(axis) == scales.shape(axis), "shape of zeros");
  }
  return {scales.data(), levels.symmetric ? nullptr : zeros.data(), group,
          static_cast<int64_t>(scales.shape(0))};
}

void group_costs(const Strided<const float, 2>& weight, const Array<const float, 3>& scales,
                 const Array<const float, 3>& zeros, const Array<const float, 1>& importance,
                 const Array<double, 3>& costs, int64_t group, int bits, bool symmetric,
                 bool robust, int threads) {
  const onnxq::Levels levels = {bits, symmetric, false, false};
  const onnxq::Weight source = weight_of(weight);
  const onnxq::Grids grids = grids_of(weight, scales, zeros, group, levels);
  require(importance.shape(0) == weight.shape(1), "shape of importance");
  for (size_t axis = 0; axis < 3; ++axis) {
    require(costs.shape(axis) == scales.shape(axis), "shape of costs");
  }
  nb::gil_scoped_release unlocked;
  onnxq::group_costs(source, levels, grids, importance.data(), robust, costs.data(), threads,
                     onnxq::tile_kernels());
}

void group_moments(const Strided<const float, 2>& weight, const Array<const float, 3>& scales,
                   const Array<const float, 3>& zeros, const Array<const float, 1>& importance,
                   const Array<double, 3>& moments, int64_t group, int bits, bool symmetric,
                   float threshold, int threads) {
  const onnxq::Levels levels = {bits, symmetric, false, false};
  const onnxq::Weight source = weight_of(weight);
  const onnxq::Grids grids = grids_of(weight, scales, zeros, group, levels);
  require(grids.count == 1, "one grid at a time");
  require(importance.shape(0) == weight.shape(1), "shape of importance");
  require(moments.shape(0) == 3 && moments.shape(1) == scales.shape(1) &&
              moments.shape(2) == scales.shape(2),
          "shape of moments");
  nb::gil_scoped_release unlocked;
  onnxq::group_moments(source, levels, grids, importance.data(), threshold, moments.data(), threads,
                       onnxq::tile_kernels());
}

bool round_to(const Strided<const float, 2>& weight, const Array<const float, 3>& scales,
              const Array<const float, 3>& zeros, const Array<uint8_t, 2>& codes, int64_t group,
              int bits, bool symmetric, int threads) {
  const onnxq::Levels levels = {bits, symmetric, false, false};
  const onnxq::Weight source = weight_of(weight);
  const onnxq::Grids grids = grids_of(weight, scales, zeros, group, levels);
  require(grids.count == 1, "one grid at a time");
  require(codes.shape(0) == weight.shape(0) && codes.shape(1) == weight.shape(1), "shape of codes");
  nb::gil_scoped_release unlocked;
  return onnxq::round_to(source, levels, grids, codes.data(), threads, onnxq::tile_kernels());
}

nb::tuple find_range(const Array<const float, 1>& values, int threads) {
  require(values.shape(0) > 0, "no values");
  float low = 0.0f, high = 0.0f;
  bool finite = false;
  {
    nb::gil_scoped_release unlocked;
    finite = onnxq::find_range(values.data(), static_cast<int64_t>(values.shape(0)), threads, &low,
                               &high);
  }
  return nb::make_tuple(low, high, finite);
}

int64_t add_to_bins(const Array<const float, 1>& values, float inverse_width,
                    const Array<int64_t, 1>& bins, int threads) {
  require(bins.shape(0) % 2 == 0, "an odd number of bins");
  int64_t zeros = 0;
  nb::gil_scoped_release unlocked;
  onnxq::add_to_bins(values.data(), static_cast<int64_t>(values.shape(0)), inverse_width,
                     static_cast<int>(bins.shape(0) / 2), threads, bins.data(), &zeros);
  return zeros;
}

void entropy_sweep(const Array<const int64_t, 1>& bins, int64_t first, int64_t last, int levels,
                   const Array<double, 1>& divergence, int threads) {
  const int64_t size = static_cast<int64_t>(bins.shape(0));
  require(size % 2 == 0 && divergence.shape(0) == bins.shape(0) / 2, "shape of divergence");
  require(0 <= first && first < last && last <= size && first <= size / 2 && last >= size / 2,
          "the window must hold the middle");
  require(levels > 0, "no levels");
  nb::gil_scoped_release unlocked;
  onnxq::entropy_sweep(bins.data(), size / 2, first, last, levels, threads, divergence.data());
}

void rounding_costs(const Array<const double, 1>& values, const Array<const double, 1>& counts,
                    const Array<const double, 1>& scales, const Array<const double, 1>& zeros,
                    int lowest, int highest, const Array<double, 1>& costs) {
  require(values.shape(0) == counts.shape(0), "shape of counts");
  require(scales.shape(0) == zeros.shape(0) && scales.shape(0) == costs.shape(0),
          "shape of zeros or costs");
  nb::gil_scoped_release unlocked;
  onnxq::rounding_costs(values.data(), counts.data(), static_cast<int64_t>(values.shape(0)),
                        scales.data(), zeros.data(), static_cast<int64_t>(scales.shape(0)), lowest,
                        highest, costs.data());
}

onnxq::Columns columns_of(const Array<const float, 2>& weight, const Array<const float, 2>& upper,
                          const Array<float, 3>& state) {
  const int64_t rows = static_cast<int64_t>(weight.shape(0));
  const int64_t columns = static_cast<int64_t>(weight.shape(1));
  require(rows > 0 && columns > 0, "the weight is empty");
  require(upper.shape(0) == weight.shape(1) && upper.shape(1) == weight.shape(1),
          "shape of the factor");
  require(static_cast<int64_t>(state.shape(0)) == (rows + onnxq::kLanes - 1) / onnxq::kLanes &&
              state.shape(1) == weight.shape(1) && state.shape(2) == onnxq::kLanes,
          "shape of the state");
  return {weight.data(), upper.data(), state.data(), rows, columns};
}

// Which kernels: the best ones, or those of this name for the tests.
const onnxq::ColumnKernels& columns_for(const std::string& name) {
  if (name.empty()) return onnxq::column_kernels();
  for (const onnxq::ColumnKernels* kernels :
       {onnxq::column_kernels_generic(), onnxq::column_kernels_avx2(),
        onnxq::column_kernels_avx512()}) {
    if (kernels && name == kernels->name) return *kernels;
  }
  throw std::invalid_argument("this CPU has no such instruction set");
}

void add_feedback(const Array<const float, 2>& weight, const Array<const float, 2>& upper,
                  const Array<float, 3>& state, int64_t first, int64_t last, int64_t begin,
                  int64_t end, int threads, const std::string& set) {
  const onnxq::Columns of = columns_of(weight, upper, state);
  require(0 <= first && first <= last && last <= begin && begin < end && end <= of.columns,
          "columns out of range");
  const onnxq::ColumnKernels& kernels = columns_for(set);
  nb::gil_scoped_release unlocked;
  onnxq::add_feedback(of, first, last, begin, end, threads, kernels);
}

void find_targets(const Array<const float, 2>& weight, const Array<const float, 2>& upper,
                  const Array<float, 3>& state, int64_t begin, int64_t end,
                  const Array<float, 2>& targets, int threads, const std::string& set) {
  const onnxq::Columns of = columns_of(weight, upper, state);
  require(0 <= begin && begin < end && end <= of.columns, "columns out of range");
  require(
      targets.shape(0) == weight.shape(0) && static_cast<int64_t>(targets.shape(1)) == end - begin,
      "shape of targets");
  const onnxq::ColumnKernels& kernels = columns_for(set);
  nb::gil_scoped_release unlocked;
  onnxq::find_targets(of, begin, end, targets.data(), threads, kernels);
}

void round_columns(const Array<const float, 2>& weight, const Array<const float, 2>& upper,
                   const Array<float, 3>& state, int64_t begin, int64_t end,
                   const Array<const float, 2>& scales, const Array<const float, 2>& zeros,
                   const Array<const int32_t, 1>& group, int lowest, int highest,
                   const Array<uint8_t, 2>& codes, int threads, const std::string& set) {
  const onnxq::Columns of = columns_of(weight, upper, state);
  require(0 <= begin && begin < end && end <= of.columns, "columns out of range");
  const size_t padded = state.shape(0) * onnxq::kLanes;
  require(
      scales.shape(1) == padded && zeros.shape(1) == padded && scales.shape(0) == zeros.shape(0),
      "shape of scales or zeros");
  require(static_cast<int64_t>(group.shape(0)) == end - begin, "shape of groups");
  for (size_t column = 0; column < group.shape(0); ++column) {
    require(
        group.data()[column] >= 0 && static_cast<size_t>(group.data()[column]) < scales.shape(0),
        "no such group");
  }
  require(codes.shape(0) == weight.shape(0) && codes.shape(1) == weight.shape(1), "shape of codes");
  const onnxq::ScalarGrid grid = {scales.data(),
                                  zeros.data(),
                                  static_cast<ptrdiff_t>(padded),
                                  group.data(),
                                  static_cast<float>(lowest),
                                  static_cast<float>(highest)};
  const onnxq::ColumnKernels& kernels = columns_for(set);
  nb::gil_scoped_release unlocked;
  onnxq::round_columns(of, begin, end, grid, codes.data(), threads, kernels);
}

// 0 when it is done, 1 when the Hessian is not positive definite, 2 when it is not finite.
template <class Stored, class Number>
int factor_hessian(const Array<const Stored, 2>& hessian, const Array<const int64_t, 1>& places,
                   const Array<const double, 1>& diagonal, const Array<const uint8_t, 1>& alive,
                   double unit, const Array<Number, 2>& upper, const Array<double, 1>& variances,
                   const Array<double, 1>& least, int threads, const std::string& set) {
  const size_t size = hessian.shape(0);
  require(hessian.shape(1) == size && upper.shape(0) == size && upper.shape(1) == size,
          "shape of the Hessian or its factor");
  require(places.shape(0) == size && diagonal.shape(0) == size && alive.shape(0) == size &&
              variances.shape(0) == size && least.shape(0) == 1,
          "length of places, diagonal, alive, variances or least");
  for (size_t place = 0; place < size; ++place) {
    require(places.data()[place] >= 0 && static_cast<size_t>(places.data()[place]) < size,
            "no such place");
  }
  const onnxq::Hessian<Stored> of = {hessian.data(), static_cast<int64_t>(size),
                                     places.data(),  diagonal.data(),
                                     alive.data(),   unit};
  const onnxq::ColumnKernels& kernels = columns_for(set);
  nb::gil_scoped_release unlocked;
  return static_cast<int>(
      onnxq::factor_hessian(of, upper.data(), variances.data(), least.data(), threads, kernels));
}

int64_t descend(const Strided<const float, 2>& target, const Array<const float, 2>& hessian,
                const Array<uint8_t, 2>& codes, const Array<const float, 2>& scales,
                const Array<const uint8_t, 2>& zeros, int64_t group, int lowest, int highest,
                int sweeps, bool greedy, int threads) {
  const size_t rows = target.shape(0), columns = target.shape(1);
  require(rows > 0 && columns > 0, "the weight is empty");
  require(hessian.shape(0) == columns && hessian.shape(1) == columns, "shape of hessian");
  require(codes.shape(0) == rows && codes.shape(1) == columns, "shape of codes");
  require(group > 0 && sweeps >= 0, "group or sweeps out of range");
  const size_t groups = (columns + static_cast<size_t>(group) - 1) / static_cast<size_t>(group);
  require(scales.shape(0) == rows && scales.shape(1) == groups, "shape of scales");
  const bool symmetric = zeros.shape(1) == 0;
  require(symmetric || (zeros.shape(0) == rows && zeros.shape(1) == groups), "shape of zeros");
  const onnxq::DescentProblem problem = {target.data(),
                                         length(target, 0),
                                         length(target, 1),
                                         target.stride(0),
                                         target.stride(1),
                                         hessian.data(),
                                         scales.data(),
                                         symmetric ? nullptr : zeros.data(),
                                         group,
                                         lowest,
                                         highest};
  nb::gil_scoped_release unlocked;
  return onnxq::descend(problem, {sweeps, greedy, threads}, codes.data(), onnxq::descent_kernels());
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Native kernels of onnxq.numerics; call them through that package.";
  m.def("instruction_set", [] { return onnxq::tile_kernels().name; });
  m.def("round_groups", &round_groups);
  m.def("pack_groups", &pack_groups);
  m.def("group_costs", &group_costs);
  m.def("group_moments", &group_moments);
  m.def("round_to", &round_to);
  m.def("find_range", &find_range);
  m.def("add_to_bins", &add_to_bins);
  m.def("descend", &descend);
  m.def("entropy_sweep", &entropy_sweep);
  m.def("rounding_costs", &rounding_costs);
  m.def("add_feedback", &add_feedback);
  m.def("factor_hessian", &factor_hessian<float, float>);
  m.def("factor_hessian", &factor_hessian<float, double>);
  m.def("factor_hessian", &factor_hessian<double, float>);
  m.def("factor_hessian", &factor_hessian<double, double>);
  m.def("find_targets", &find_targets);
  m.def("round_columns", &round_columns);
  bind_codebook(m);
  bind_hadamard(m);
  bind_e8p(m);
  bind_tables(m);
  bind_viterbi(m);
}
