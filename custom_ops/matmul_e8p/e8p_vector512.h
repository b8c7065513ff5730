// What the AVX-512 kernels of floats are made of, for matmul_e8p_avx512.cpp and _vnni.cpp.
#pragma once

#include <immintrin.h>

namespace onnxq {
namespace {

struct Single512 {
  static constexpr int kRows = 8, kTokens = 3, kLanes = 16;
  using Sums = __m512;
  using Weight = __m512;
  using Token = __m512;

  static Sums none() { return _mm512_setzero_ps(); }
  static Weight weight(const float* from) { return _mm512_load_ps(from); }
  static Token token(const float* from) { return _mm512_load_ps(from); }
  static Sums add(Sums sums, Weight weight, Token token) {
    return _mm512_fmadd_ps(weight, token, sums);
  }
  static float total(Sums sums) { return _mm512_reduce_add_ps(sums); }
};

}  // namespace
}  // namespace onnxq
