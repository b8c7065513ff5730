// The kernels of Hadamard for Python: tests and the benchmark choose the instruction set.
#include "../numerics/bindings.h"
#include "../numerics/parallel.h"
#include "hadamard.h"

namespace {

using onnxq::HadamardKernels;

const HadamardKernels* named(const std::string& name) {
  if (name.empty()) return &onnxq::hadamard_kernels();
  for (const HadamardKernels* kernels :
       {onnxq::hadamard_kernels_avx512(), onnxq::hadamard_kernels_avx2(),
        onnxq::hadamard_kernels_neon(), onnxq::hadamard_kernels_generic()}) {
    if (kernels && name == kernels->name) return kernels;
  }
  return nullptr;
}

void hadamard_rows(const Array<const float, 2>& x, const Array<const float, 2>& factor,
                   const Array<float, 2>& y, int64_t begin, int64_t end, const std::string& name,
                   int threads) {
  const int64_t rows = static_cast<int64_t>(x.shape(0)), width = static_cast<int64_t>(x.shape(1));
  const int64_t order = static_cast<int64_t>(factor.shape(0));
  require(y.shape(0) == x.shape(0) && y.shape(1) == x.shape(1), "shape of y");
  require(factor.shape(1) == factor.shape(0) && order > 0 && width % order == 0,
          "shape of the factor");
  const int64_t power = width / order;
  require(power > 0 && (power & (power - 1)) == 0, "not a factor times a power of two");
  require(0 <= begin && begin <= end && end <= rows, "no such rows");
  const HadamardKernels* kernels = named(name);
  require(kernels != nullptr, "no such instruction set");
  nb::gil_scoped_release unlocked;
  const int workers = onnxq::worker_count(end - begin, threads);
  onnxq::split(end - begin, workers, [&](int, int64_t first, int64_t last) {
    const int64_t at = (begin + first) * width;
    std::vector<float> scratch(order > 1 ? static_cast<size_t>(width) : 0);
    kernels->transform(x.data() + at, y.data() + at, last - first, {order, power}, factor.data(),
                       scratch.data());
  });
}

void widen_halves(const Array<const uint16_t, 1>& halves, const Array<float, 1>& singles,
                  const std::string& name) {
  require(singles.shape(0) == halves.shape(0), "lengths");
  const HadamardKernels* kernels = named(name);
  require(kernels != nullptr, "no such instruction set");
  kernels->widen(halves.data(), singles.data(), static_cast<int64_t>(halves.shape(0)));
}

void narrow_to_halves(const Array<const float, 1>& singles, const Array<uint16_t, 1>& halves,
                      const std::string& name) {
  require(singles.shape(0) == halves.shape(0), "lengths");
  const HadamardKernels* kernels = named(name);
  require(kernels != nullptr, "no such instruction set");
  kernels->narrow(singles.data(), halves.data(), static_cast<int64_t>(halves.shape(0)));
}

nb::list hadamard_instruction_sets() {
  nb::list names;
  for (const HadamardKernels* kernels :
       {onnxq::hadamard_kernels_avx512(), onnxq::hadamard_kernels_avx2(),
        onnxq::hadamard_kernels_neon(), onnxq::hadamard_kernels_generic()}) {
    if (kernels) names.append(kernels->name);
  }
  return names;
}

}  // namespace

void bind_hadamard(nb::module_& m) {
  m.def("hadamard_rows", &hadamard_rows);
  m.def("widen_halves", &widen_halves);
  m.def("narrow_to_halves", &narrow_to_halves);
  m.def("hadamard_instruction_sets", &hadamard_instruction_sets);
}
