#include "codebook_search.h"

#include <algorithm>

#include "parallel.h"

namespace onnxq {

const SearchKernels& search_kernels() {
  for (const SearchKernels* kernels : {search_kernels_avx512(), search_kernels_avx2()}) {
    if (kernels) return *kernels;
  }
  return *search_kernels_generic();
}

void search_codes(const SearchProblem& problem, const SearchKernels& kernels, int threads,
                  uint16_t* codes) {
  constexpr int64_t kFew = 4 * kSearchLanes;
  const int64_t parts = (problem.count + kFew - 1) / kFew;
  share(parts, threads, [&](int64_t part) {
    const int64_t end = std::min(problem.count, (part + 1) * kFew);
    kernels.search(problem, part * kFew, end, codes);
  });
}

}  // namespace onnxq
