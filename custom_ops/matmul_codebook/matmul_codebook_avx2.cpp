// Kernels in AVX2: products of bytes widened to 16 bits, in pairs.
#include "matmul_codebook.h"

#ifdef __AVX2__
#include <immintrin.h>

#include <cstring>

namespace {

typedef float Vector __attribute__((vector_size(32)));

struct Isa {
  static constexpr int kTokens = 2;

  // 16 rows at a time: each register holds two sums of each of four rows.
  template <int kCount>
  static void dot(const int8_t* panel, int64_t quads, int books, const uint8_t* const* tokens,
                  int32_t* sums) {
    constexpr int64_t kStep = 4 * onnxq::kCodeRows;
    for (int64_t rows = 0; rows < onnxq::kCodeRows; rows += 16) {
      __m256i sum[kCount][4];
      for (auto& each : sum) {
        for (__m256i& one : each) one = _mm256_setzero_si256();
      }
      const int8_t* from = panel + 4 * rows;
      for (int book = 0; book < books; ++book) {
        for (int64_t quad = 0; quad < quads; ++quad, from += kStep) {
          __m256i weight[4];
          for (int part = 0; part < 4; ++part) {
            weight[part] = _mm256_cvtepi8_epi16(
                _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * part)));
          }
          for (int token = 0; token < kCount; ++token) {
            int32_t four;
            std::memcpy(&four, tokens[token] + 4 * quad, sizeof(four));
            const __m256i a = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
            for (int part = 0; part < 4; ++part) {
              sum[token][part] =
                  _mm256_add_epi32(sum[token][part], _mm256_madd_epi16(a, weight[part]));
            }
          }
        }
      }
      for (int token = 0; token < kCount; ++token) {
        for (int pair = 0; pair < 2; ++pair) {
          // Rows 0 1 4 5 | 2 3 6 7 of each pair of registers, then in order.
          const __m256i joined = _mm256_hadd_epi32(sum[token][2 * pair], sum[token][2 * pair + 1]);
          _mm256_storeu_si256(
              reinterpret_cast<__m256i*>(sums + token * onnxq::kCodeRows + rows + 8 * pair),
              _mm256_permute4x64_epi64(joined, 0xd8));
        }
      }
    }
  }

  static Vector madd(Vector a, Vector b, Vector c) {
    return reinterpret_cast<Vector>(_mm256_fmadd_ps(
        reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
  }
};

}  // namespace

#include "matmul_codebook_source.h"

const onnxq::CodeKernels* onnxq::code_kernels_avx2() {
  static constexpr CodeKernels kKernels = {"avx2",  0,       prepare,       multiply,
                                           nullptr, nullptr, multiply_float};
  return &kKernels;
}
#else
const onnxq::CodeKernels* onnxq::code_kernels_avx2() { return nullptr; }
#endif
