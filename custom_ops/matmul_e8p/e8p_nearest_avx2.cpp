// Compiled with AVX2 where the compiler has it; asked for only where the CPU does.
#include "e8p_nearest.h"

#ifdef __AVX2__
#define ONNXQ_ISA "avx2"
#include "e8p_nearest_source.h"

const onnxq::E8pNearest* onnxq::e8p_nearest_avx2() {
  return __builtin_cpu_supports("avx2") ? &kKernels : nullptr;
}
#else
const onnxq::E8pNearest* onnxq::e8p_nearest_avx2() { return nullptr; }
#endif
