// Tables of few values for Python: see onnxq/numerics/tables.py and entry_descent.py.
#include "bindings.h"
#include "entry_descent.h"
#include "tables.h"

namespace {

using Floats = Array<const float, 2>;

onnxq::Numbers numbers_of(const Floats& values, const Floats& importance, int64_t group) {
  const int64_t rows = static_cast<int64_t>(values.shape(0));
  const int64_t columns = static_cast<int64_t>(values.shape(1));
  require(rows > 0 && columns > 0 && group > 0, "the weight is empty, or the group is");
  require(importance.shape(1) == values.shape(1) &&
              (importance.shape(0) == 1 || importance.shape(0) == values.shape(0)),
          "shape of importance");
  const ptrdiff_t stride = importance.shape(0) == 1 ? 0 : columns;
  return {values.data(), rows, columns, columns, importance.data(), stride, group};
}

void fit_tables(const Floats& values, const Floats& importance, int64_t group, int64_t most,
                const Array<double, 3>& tables, const Array<double, 3>& masses, int threads) {
  const onnxq::Numbers numbers = numbers_of(values, importance, group);
  const size_t groups = static_cast<size_t>(numbers.groups());
  const size_t entries = tables.shape(2);
  require(tables.shape(0) == values.shape(0) && tables.shape(1) == groups && entries > 0 &&
              entries <= onnxq::kMostEntries && most >= static_cast<int64_t>(entries),
          "shape of tables");
  for (size_t axis = 0; axis < 3; ++axis) {
    require(masses.shape(axis) == tables.shape(axis), "shape of masses");
  }
  nb::gil_scoped_release unlocked;
  onnxq::fit_tables(numbers, static_cast<int>(entries), most, tables.data(), masses.data(),
                    threads);
}

void nearest_entries(const Floats& values, const Array<const float, 3>& entries,
                     const Array<const float, 2>& scales, const Array<uint8_t, 2>& codes,
                     int64_t group, int threads) {
  const onnxq::Numbers numbers = numbers_of(values, values, group);
  const size_t rows = values.shape(0), groups = static_cast<size_t>(numbers.groups());
  const auto fits = [&](size_t down, size_t across) {
    return (down == 1 || down == rows) && (across == 1 || across == groups);
  };
  const size_t count = entries.shape(2);
  require(fits(entries.shape(0), entries.shape(1)) && count > 0 && count <= onnxq::kMostEntries,
          "shape of entries");
  require(fits(scales.shape(0), scales.shape(1)), "shape of scales");
  require(codes.shape(0) == rows && codes.shape(1) == values.shape(1), "shape of codes");
  const auto step = [](size_t length, size_t inner) {
    return length == 1 ? ptrdiff_t{0} : static_cast<ptrdiff_t>(inner);
  };
  const onnxq::Tables tables = {entries.data(),
                                step(entries.shape(0), entries.shape(1) * count),
                                step(entries.shape(1), count),
                                static_cast<int>(count),
                                scales.data(),
                                step(scales.shape(0), scales.shape(1)),
                                step(scales.shape(1), 1)};
  nb::gil_scoped_release unlocked;
  onnxq::nearest_entries(numbers, tables, codes.data(), threads);
}

void search_scales(const Floats& values, const Floats& importance, int64_t group,
                   const Array<const float, 1>& table, const Array<const float, 1>& factors,
                   int signs, const Array<float, 2>& scales, const Array<double, 2>& costs,
                   int threads) {
  const onnxq::Numbers numbers = numbers_of(values, importance, group);
  const size_t count = table.shape(0), groups = static_cast<size_t>(numbers.groups());
  require(count > 1 && count <= onnxq::kMostEntries, "length of the table");
  require(table.data()[0] != 0.0f || table.data()[count - 1] != 0.0f, "a table of zeros");
  require(factors.shape(0) > 0 && (signs == 1 || signs == 2), "factors or signs");
  require(scales.shape(0) == values.shape(0) && scales.shape(1) == groups, "shape of scales");
  require(costs.shape(0) == scales.shape(0) && costs.shape(1) == groups, "shape of costs");
  nb::gil_scoped_release unlocked;
  onnxq::search_scales(numbers, table.data(), static_cast<int>(count), factors.data(),
                       static_cast<int>(factors.shape(0)), signs, scales.data(), costs.data(),
                       threads);
}

// Checks codes [rows, columns] of `entries` against the Hessian.
void check_codes(const Floats& hessian, const Array<uint8_t, 2>& codes, size_t entries) {
  require(hessian.shape(0) == codes.shape(1) && hessian.shape(1) == codes.shape(1),
          "shape of the Hessian");
  require(entries > 0 && entries <= onnxq::kMostEntries, "number of entries");
  for (size_t at = 0; at < codes.size(); ++at) {
    require(codes.data()[at] < entries, "a code beyond the table");
  }
}

int64_t descend_entries(const Floats& hessian, const Array<const float, 3>& points, int64_t group,
                        int sweeps, const Array<uint8_t, 2>& codes, const Array<float, 2>& residual,
                        int threads) {
  const size_t rows = codes.shape(0), columns = codes.shape(1), entries = points.shape(2);
  check_codes(hessian, codes, entries);
  require(group > 0 && sweeps > 0, "group or sweeps");
  const size_t size = static_cast<size_t>(group), groups = (columns + size - 1) / size;
  require((points.shape(0) == 1 || points.shape(0) == rows) &&
              (points.shape(1) == 1 || points.shape(1) == groups),
          "shape of points");
  require(residual.shape(0) == rows && residual.shape(1) == columns, "shape of the residual");
  const onnxq::EntryTables tables = {
      points.data(), static_cast<int>(entries),
      points.shape(1) == 1 ? ptrdiff_t{0} : static_cast<ptrdiff_t>(entries), group};
  const ptrdiff_t row_stride =
      points.shape(0) == 1 ? 0 : static_cast<ptrdiff_t>(points.shape(1) * entries);
  nb::gil_scoped_release unlocked;
  return onnxq::descend_entries(hessian.data(), static_cast<int64_t>(rows),
                                static_cast<int64_t>(columns), tables, row_stride, sweeps,
                                codes.data(), residual.data(), threads);
}

void entry_sums(const Floats& hessian, const Array<uint8_t, 2>& codes, int64_t first, int64_t count,
                const Array<double, 3>& sums, int threads) {
  const int64_t rows = static_cast<int64_t>(codes.shape(0));
  const int64_t columns = static_cast<int64_t>(codes.shape(1));
  check_codes(hessian, codes, sums.shape(1));
  require(first >= 0 && count > 0 && first + count <= columns, "columns");
  require(sums.shape(0) == codes.shape(0) && sums.shape(2) == sums.shape(1), "shape of sums");
  nb::gil_scoped_release unlocked;
  onnxq::entry_sums(hessian.data(), rows, columns, first, count, codes.data(),
                    static_cast<int>(sums.shape(1)), sums.data(), threads);
}

}  // namespace

void bind_tables(nb::module_& m) {
  m.def("fit_tables", &fit_tables);
  m.def("nearest_entries", &nearest_entries);
  m.def("search_table_scales", &search_scales);
  m.def("descend_entries", &descend_entries);
  m.def("entry_sums", &entry_sums);
}
