// Compiled with AVX-512 F, BW, DQ and VL where the compiler has them; asked for only where the
// CPU does.
#include "e8p_nearest.h"

#ifdef __AVX512BW__
#define ONNXQ_ISA "avx512"
#include "e8p_nearest_source.h"

const onnxq::E8pNearest* onnxq::e8p_nearest_avx512() {
  const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return has ? &kKernels : nullptr;
}
#else
const onnxq::E8pNearest* onnxq::e8p_nearest_avx512() { return nullptr; }
#endif
