// Compiled with AVX2 where the compiler has it; asked for only where the CPU does.
#include "codebook_search.h"

#ifdef __AVX2__
#define ONNXQ_ISA "avx2"
#include "codebook_search_kernels.h"

const onnxq::SearchKernels* onnxq::search_kernels_avx2() {
  return __builtin_cpu_supports("avx2") ? &kKernels : nullptr;
}
#else
const onnxq::SearchKernels* onnxq::search_kernels_avx2() { return nullptr; }
#endif
