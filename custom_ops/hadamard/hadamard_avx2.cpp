// Compiled with AVX2, FMA and F16C where the compiler has them; asked for only where the CPU does.
#include "hadamard.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

#include "single.h"

namespace {

struct Wide {
  static constexpr int kWidth = 8, kRadix = 8, kOutputs = 4, kColumns = 2;
  using Vector = __m256;
  static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Vector value) { _mm256_storeu_ps(to, value); }
  static Vector all(float value) { return _mm256_set1_ps(value); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }
  // v * sign + (v with halves exchanged): the product is exact, so this is one rounded sum.
  static Vector within(Vector v) {
    const Vector near = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1);
    const Vector pair = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
    const Vector half = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
    v = _mm256_fmadd_ps(v, near, _mm256_permute_ps(v, 0xb1));
    v = _mm256_fmadd_ps(v, pair, _mm256_permute_ps(v, 0x4e));
    return _mm256_fmadd_ps(v, half, _mm256_permute2f128_ps(v, v, 0x01));
  }
};

void widen(const uint16_t* half, float* single, int64_t count) {
  for (; count >= 8; count -= 8, half += 8, single += 8) {
    _mm256_storeu_ps(single, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)half)));
  }
  for (int64_t index = 0; index < count; ++index) single[index] = _cvtsh_ss(half[index]);
}

void narrow(const float* single, uint16_t* half, int64_t count) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  for (; count >= 8; count -= 8, half += 8, single += 8) {
    _mm_storeu_si128((__m128i*)half, _mm256_cvtps_ph(_mm256_loadu_ps(single), kNearest));
  }
  for (int64_t index = 0; index < count; ++index) half[index] = _cvtss_sh(single[index], kNearest);
}

}  // namespace

#define ONNXQ_ISA "avx2"
#include "hadamard_source.h"

const onnxq::HadamardKernels* onnxq::hadamard_kernels_avx2() {
  const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                   __builtin_cpu_supports("f16c");
  return has ? &kHadamardKernels : nullptr;
}
#else
const onnxq::HadamardKernels* onnxq::hadamard_kernels_avx2() { return nullptr; }
#endif
