// The nearest points of codebooks, alone or as sums: see onnxq/numerics/codebook.py for the
// meaning.
//
// One instruction set per file (codebook_search_*.cpp) compiles the same source
// (codebook_search_kernels.h). All of them do the same IEEE operations in the same order: the
// results are equal bit for bit.
#pragma once

#include <cstdint>

namespace onnxq {

constexpr int kSearchLanes = 16;   // vectors side by side
constexpr int kMostDimension = 8;  // entries of a vector
constexpr int kMostBooks = 16;     // vectors that are added
constexpr int kWidestBeam = 32;    // sums that are kept while more books follow

// books [books][entries][dimension]. Where `weights` is not null the squared error of each entry
// of a vector counts by its weight, [count][dimension], at least 0.
struct SearchProblem {
  const float* values;   // [count][dimension]
  const float* weights;  // [count][dimension] or null
  int64_t count;
  const float* books;
  const float* halves;  // |c|^2 / 2 of each vector c of the books, [books][entries]
  int64_t entries;
  int dimension, books_count;
  int beam;
};

struct SearchKernels {
  const char* name;
  // Codes [count][books_count] of vectors [begin, end).
  void (*search)(const SearchProblem&, int64_t begin, int64_t end, uint16_t* codes);
};

const SearchKernels& search_kernels();          // the best one this CPU has
const SearchKernels* search_kernels_generic();  // the baseline of the architecture
const SearchKernels* search_kernels_avx2();     // null where not compiled or the CPU lacks it
const SearchKernels* search_kernels_avx512();

// All vectors; the result does not depend on the threads.
void search_codes(const SearchProblem&, const SearchKernels&, int threads, uint16_t* codes);

}  // namespace onnxq
