// Kernels in AVX-512 without VNNI: products of bytes widened to 16 bits, in pairs.
#include "matmul_codebook.h"

#ifdef __AVX512BW__
#include <immintrin.h>

#include <cstring>

namespace {

typedef float Vector __attribute__((vector_size(64)));

struct Isa {
  static constexpr int kTokens = 2;

  // Each register holds two sums of each of eight rows.
  template <int kCount>
  static void dot(const int8_t* panel, int64_t quads, int books, const uint8_t* const* tokens,
                  int32_t* sums) {
    __m512i sum[kCount][8];
    for (auto& each : sum) {
      for (__m512i& one : each) one = _mm512_setzero_si512();
    }
    for (int book = 0; book < books; ++book) {
      for (int64_t quad = 0; quad < quads; ++quad, panel += 4 * onnxq::kCodeRows) {
        __m512i a[kCount];
        for (int token = 0; token < kCount; ++token) {
          int32_t four;
          std::memcpy(&four, tokens[token] + 4 * quad, sizeof(four));
          a[token] = _mm512_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
        }
        for (int part = 0; part < 8; ++part) {
          const __m512i weight = _mm512_cvtepi8_epi16(
              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 32 * part)));
          for (int token = 0; token < kCount; ++token) {
            sum[token][part] =
                _mm512_add_epi32(sum[token][part], _mm512_madd_epi16(a[token], weight));
          }
        }
      }
    }
    for (int token = 0; token < kCount; ++token) {
      for (int part = 0; part < 8; ++part) {
        // The low half of 64 bits gets the sum of both.
        const __m512i both =
            _mm512_add_epi32(sum[token][part], _mm512_srli_epi64(sum[token][part], 32));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + token * onnxq::kCodeRows + 8 * part),
                            _mm512_cvtepi64_epi32(both));
      }
    }
  }

  static Vector madd(Vector a, Vector b, Vector c) {
    return reinterpret_cast<Vector>(_mm512_fmadd_ps(
        reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
  }
};

}  // namespace

#include "matmul_codebook_source.h"

const onnxq::CodeKernels* onnxq::code_kernels_avx512() {
  static constexpr CodeKernels kKernels = {"avx512", 0,       prepare,       multiply,
                                           nullptr,  nullptr, multiply_float};
  return &kKernels;
}
#else
const onnxq::CodeKernels* onnxq::code_kernels_avx512() { return nullptr; }
#endif
