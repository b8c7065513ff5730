// Rounding to E8P for Python.
#include "../numerics/bindings.h"
#include "e8p_book.h"
#include "e8p_nearest.h"

namespace {

using onnxq::E8pNearest;

const E8pNearest& named(const std::string& name) {
  if (name.empty()) return onnxq::e8p_nearest();
  for (const E8pNearest* kernels :
       {onnxq::e8p_nearest_avx512(), onnxq::e8p_nearest_avx2(), onnxq::e8p_nearest_generic()}) {
    if (kernels && name == kernels->name) return *kernels;
  }
  throw std::invalid_argument("this CPU has no such instruction set");
}

onnxq::E8pWeight weight_of(const Array<const float, 2>& values, const Array<const float, 1>& scales,
                           int bits) {
  require(bits >= 2 && bits <= 4, "bits are 2, 3 or 4");
  require(values.shape(0) > 0 && values.shape(1) > 0 && values.shape(1) % 8 == 0,
          "columns are not a multiple of 8");
  require(scales.shape(0) == values.shape(0), "shape of scales");
  return {values.data(), static_cast<int64_t>(values.shape(0)),
          static_cast<int64_t>(values.shape(1) / 8), scales.data(), bits};
}

void e8p_round(const Array<const float, 2>& values, const Array<const float, 1>& scales,
               const Array<uint16_t, 2>& codes, const Array<float, 2>& points, int bits,
               int threads, const std::string& set) {
  const onnxq::E8pWeight weight = weight_of(values, scales, bits);
  require(codes.shape(0) == values.shape(0) &&
              codes.shape(1) == values.shape(1) / 8 * (bits == 2 ? 1 : 2),
          "shape of codes");
  require(points.shape(0) == values.shape(0) && points.shape(1) == values.shape(1),
          "shape of points");
  const E8pNearest& kernels = named(set);
  nb::gil_scoped_release unlocked;
  onnxq::e8p_round(weight, codes.data(), points.data(), threads, kernels);
}

void e8p_costs(const Array<const float, 2>& values, const Array<const float, 1>& scales,
               const Array<const float, 1>& importance, const Array<double, 1>& costs, int bits,
               int threads, const std::string& set) {
  const onnxq::E8pWeight weight = weight_of(values, scales, bits);
  require(importance.shape(0) == values.shape(1), "shape of importance");
  require(costs.shape(0) == values.shape(0), "shape of costs");
  const E8pNearest& kernels = named(set);
  nb::gil_scoped_release unlocked;
  onnxq::e8p_costs(weight, importance.data(), costs.data(), threads, kernels);
}

}  // namespace

void bind_e8p(nb::module_& m) {
  m.def("e8p_round", &e8p_round);
  m.def("e8p_costs", &e8p_costs);
}
