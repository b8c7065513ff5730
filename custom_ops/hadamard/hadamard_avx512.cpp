// Compiled with AVX-512 F, BW, DQ and VL where the compiler has them; asked for only where the
// CPU does.
#include "hadamard.h"

#ifdef __AVX512BW__
#include <immintrin.h>

#include "single.h"

namespace {

struct Wide {
  static constexpr int kWidth = 16, kRadix = 16, kOutputs = 4, kColumns = 4;
  using Vector = __m512;
  static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Vector value) { _mm512_storeu_ps(to, value); }
  static Vector all(float value) { return _mm512_set1_ps(value); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
  // v * sign + (v with halves exchanged): the product is exact, so this is one rounded sum.
  static Vector within(Vector v) {
    const Vector near = signs(0xaaaa), pair = signs(0xcccc), quad = signs(0xf0f0);
    const Vector half = signs(0xff00);
    v = _mm512_fmadd_ps(v, near, _mm512_permute_ps(v, 0xb1));
    v = _mm512_fmadd_ps(v, pair, _mm512_permute_ps(v, 0x4e));
    v = _mm512_fmadd_ps(v, quad, _mm512_shuffle_f32x4(v, v, 0xb1));
    return _mm512_fmadd_ps(v, half, _mm512_shuffle_f32x4(v, v, 0x4e));
  }

 private:
  static Vector signs(__mmask16 minus) {
    return _mm512_mask_blend_ps(minus, _mm512_set1_ps(1.0f), _mm512_set1_ps(-1.0f));
  }
};

// The forms with a mask: GCC 12 takes the registers that the others leave undefined for a mistake.
__m512 to_single(__m256i half) { return _mm512_maskz_cvtph_ps(0xffff, half); }

__m256i to_half(__m512 single) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return _mm512_maskz_cvtps_ph(0xffff, single, kNearest);
}

void widen(const uint16_t* half, float* single, int64_t count) {
  for (; count >= 16; count -= 16, half += 16, single += 16) {
    _mm512_storeu_ps(single, to_single(_mm256_loadu_si256((const __m256i*)half)));
  }
  const __mmask16 left = static_cast<__mmask16>((1u << count) - 1u);
  _mm512_mask_storeu_ps(single, left, to_single(_mm256_maskz_loadu_epi16(left, half)));
}

void narrow(const float* single, uint16_t* half, int64_t count) {
  for (; count >= 16; count -= 16, half += 16, single += 16) {
    _mm256_storeu_si256((__m256i*)half, to_half(_mm512_loadu_ps(single)));
  }
  const __mmask16 left = static_cast<__mmask16>((1u << count) - 1u);
  _mm256_mask_storeu_epi16(half, left, to_half(_mm512_maskz_loadu_ps(left, single)));
}

}  // namespace

#define ONNXQ_ISA "avx512"
#include "hadamard_source.h"

const onnxq::HadamardKernels* onnxq::hadamard_kernels_avx512() {
  const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return has ? &kHadamardKernels : nullptr;
}
#else
const onnxq::HadamardKernels* onnxq::hadamard_kernels_avx512() { return nullptr; }
#endif
