// The search in codebooks for Python; see onnxq/numerics/codebook.py.
#include <vector>

#include "bindings.h"
#include "codebook_search.h"
#include "parallel.h"

namespace {

const onnxq::SearchKernels* named(const std::string& name) {
  if (name.empty()) return &onnxq::search_kernels();
  for (const onnxq::SearchKernels* kernels :
       {onnxq::search_kernels_avx512(), onnxq::search_kernels_avx2(),
        onnxq::search_kernels_generic()}) {
    if (kernels && name == kernels->name) return kernels;
  }
  return nullptr;
}

std::vector<float> half_squares(const float* points, size_t count, size_t dimension) {
  std::vector<float> halves(count);
  for (size_t point = 0; point < count; ++point) {
    double sum = 0;
    for (size_t entry = 0; entry < dimension; ++entry) {
      const double value = points[point * dimension + entry];
      sum += value * value;
    }
    halves[point] = static_cast<float>(sum / 2);
  }
  return halves;
}

void search_codebooks(const Array<const float, 2>& values, const Array<const float, 2>& weights,
                      const Array<const float, 3>& books, const Array<uint16_t, 2>& codes, int beam,
                      const std::string& name, int threads) {
  const size_t dimension = books.shape(2);
  require(dimension == 1 || dimension == 2 || dimension == 4 || dimension == 8, "dimension");
  require(books.shape(0) >= 1 && books.shape(0) <= onnxq::kMostBooks, "number of books");
  require(books.shape(1) >= 1 && books.shape(1) <= 65536, "number of entries");
  require(beam >= 1 && beam <= onnxq::kWidestBeam, "width of the beam");
  require(values.shape(1) == dimension, "shape of values");
  const bool weighted = weights.shape(0) > 0;
  require(!weighted || (weights.shape(0) == values.shape(0) && weights.shape(1) == dimension),
          "shape of weights");
  require(codes.shape(0) == values.shape(0) && codes.shape(1) == books.shape(0), "shape of codes");
  const onnxq::SearchKernels* kernels = named(name);
  require(kernels != nullptr, "no such instruction set");
  nb::gil_scoped_release unlocked;
  const std::vector<float> halves =
      half_squares(books.data(), books.shape(0) * books.shape(1), dimension);
  const onnxq::SearchProblem problem = {values.data(),
                                        weighted ? weights.data() : nullptr,
                                        static_cast<int64_t>(values.shape(0)),
                                        books.data(),
                                        halves.data(),
                                        static_cast<int64_t>(books.shape(1)),
                                        static_cast<int>(dimension),
                                        static_cast<int>(books.shape(0)),
                                        beam};
  onnxq::search_codes(problem, *kernels, threads, codes.data());
}

}  // namespace

void bind_codebook(nb::module_& m) { m.def("search_codebooks", &search_codebooks); }
