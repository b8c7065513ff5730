// The search through a trellis for Python: see onnxq/numerics/trellis.py.
#include <algorithm>

#include "../matmul_trellis/trellis_codes.h"
#include "bindings.h"
#include "viterbi.h"

namespace {

using onnxq::ViterbiKernels;

const ViterbiKernels* named(const std::string& name) {
  if (name.empty()) return &onnxq::viterbi_kernels();
  for (const ViterbiKernels* kernels :
       {onnxq::viterbi_kernels_avx512(), onnxq::viterbi_kernels_avx2(),
        onnxq::viterbi_kernels_generic()}) {
    if (kernels && name == kernels->name) return kernels;
  }
  return nullptr;
}

bool find_paths(const Array<const int16_t, 2>& values, const Array<const int16_t, 3>& targets,
                const Array<uint16_t, 2>& states, int step_bits, int state_bits, int64_t window,
                const Array<const int16_t, 1>& weights, const Array<const int16_t, 2>& feedback,
                const Array<const int16_t, 1>& units, int threads, const std::string& name) {
  const ViterbiKernels* kernels = named(name);
  require(kernels != nullptr, "no such instruction set");
  const int vector = static_cast<int>(values.shape(0));
  require(kernels->advance(step_bits, vector) != nullptr, "no such trellis");
  require(state_bits <= 16 && state_bits - step_bits >= 5, "bits of a state");
  require(values.shape(1) == size_t{1} << state_bits, "shape of values");
  require(targets.shape(2) == values.shape(0), "shape of targets");
  require(states.shape(0) == targets.shape(0) && states.shape(1) == targets.shape(1),
          "shape of states");
  const int64_t length = static_cast<int64_t>(targets.shape(1));
  require(length * step_bits >= state_bits, "the sequence is shorter than a state");
  require(length % 2 == 0, "an odd number of steps");
  require(window > 0 && window % 2 == 0 && window <= length, "window");
  const int columns = static_cast<int>(weights.shape(0));  // none: errors are all alike
  require(feedback.shape(0) == weights.shape(0) && feedback.shape(1) == weights.shape(0),
          "shape of feedback");
  require(columns <= onnxq::kShapedColumns, "too many columns of a row");
  require(units.shape(0) == weights.shape(0), "shape of units");
  require(std::all_of(units.data(), units.data() + columns, [](int16_t unit) { return unit > 0; }),
          "a unit of corrections is not positive");
  require(columns == 0 || (columns % vector == 0 && length * vector % columns == 0),
          "a row is no whole number of steps, or the sequence of rows");
  const onnxq::Shaping shaping = {columns, weights.data(), feedback.data(), units.data()};
  const onnxq::Trellis of = {{state_bits, step_bits, vector},
                             values.data(),
                             length,
                             window,
                             columns > 0 ? &shaping : nullptr};
  nb::gil_scoped_release unlocked;
  return onnxq::find_paths(of, targets.data(), static_cast<int64_t>(targets.shape(0)),
                           states.data(), threads, *kernels);
}

nb::list viterbi_instruction_sets() {
  nb::list names;
  for (const ViterbiKernels* kernels :
       {onnxq::viterbi_kernels_avx512(), onnxq::viterbi_kernels_avx2(),
        onnxq::viterbi_kernels_generic()}) {
    if (kernels) names.append(kernels->name);
  }
  return names;
}

// The magnitudes of hyb and its factor.
nb::tuple trellis_hybrid() {
  nb::list magnitudes;
  for (const int8_t magnitude : onnxq::kTrellisMagnitudes) magnitudes.append(int{magnitude});
  return nb::make_tuple(magnitudes, onnxq::kHybFactor);
}

}  // namespace

void bind_viterbi(nb::module_& m) {
  m.def("find_paths", &find_paths);
  m.def("viterbi_instruction_sets", &viterbi_instruction_sets);
  m.def("trellis_hybrid", &trellis_hybrid);
}
