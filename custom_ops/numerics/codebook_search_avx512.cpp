// Compiled with AVX-512 F, BW, DQ and VL where the compiler has them; asked for only where the
// CPU does.
#include "codebook_search.h"

#ifdef __AVX512BW__
#define ONNXQ_ISA "avx512"
#include "codebook_search_kernels.h"

const onnxq::SearchKernels* onnxq::search_kernels_avx512() {
  const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return has ? &kKernels : nullptr;
}
#else
const onnxq::SearchKernels* onnxq::search_kernels_avx512() { return nullptr; }
#endif
