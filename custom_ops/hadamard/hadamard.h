// Rows of float32 times H / sqrt(n), with H = F (x) S: F a small orthonormal factor [m, m], S the
// Sylvester matrix of 2^k, n = m * 2^k. Index i of a row is (i / 2^k, i % 2^k); the factor acts on
// the first part and the fast Walsh-Hadamard transform on the second.
//
// One instruction set per file (hadamard_*.cpp) compiles the same source (hadamard_source.h);
// `hadamard_kernels()` picks the best the CPU has. Stages run from the nearest neighbours to the
// farthest in all of them, so that with m = 1 their results are equal bit for bit; with a factor
// they agree where the CPU has fused multiply-add.
#pragma once

#include <cstdint>

namespace onnxq {

struct HadamardSize {
  int64_t factor;  // m, at least 1
  int64_t power;   // 2^k, at least 1
};

struct HadamardKernels {
  const char* name;
  // y = x * (F (x) S / sqrt(2^k)) on `rows` consecutive rows; y may be x. `factor` is [m, m], row
  // major; null when m = 1. `scratch` holds m * 2^k floats, and may be null when m = 1.
  void (*transform)(const float* x, float* y, int64_t rows, HadamardSize size, const float* factor,
                    float* scratch);
  // float16 to float32, and back rounded to nearest, ties to even.
  void (*widen)(const uint16_t* half, float* single, int64_t count);
  void (*narrow)(const float* single, uint16_t* half, int64_t count);
};

const HadamardKernels& hadamard_kernels();          // the best one this CPU has
const HadamardKernels* hadamard_kernels_generic();  // the baseline of the architecture
const HadamardKernels* hadamard_kernels_avx2();     // null where not compiled or the CPU lacks it
const HadamardKernels* hadamard_kernels_avx512();
const HadamardKernels* hadamard_kernels_neon();

}  // namespace onnxq
