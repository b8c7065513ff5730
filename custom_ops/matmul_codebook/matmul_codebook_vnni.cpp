// Kernels in AVX-512 with VNNI and VBMI: panels by products of four bytes, and tables.
#include "matmul_codebook.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
// GCC 12 takes registers its AVX-512 headers leave undefined on purpose for a mistake.
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <cstring>

namespace {

typedef float Vector __attribute__((vector_size(64)));

struct Isa {
  static constexpr int kTokens = 6;

  template <int kCount>
  static void dot(const int8_t* panel, int64_t quads, int books, const uint8_t* const* tokens,
                  int32_t* sums) {
    __m512i sum[kCount][4];
    for (auto& each : sum) {
      for (__m512i& one : each) one = _mm512_setzero_si512();
    }
    for (int book = 0; book < books; ++book) {
      for (int64_t quad = 0; quad < quads; ++quad, panel += 4 * onnxq::kCodeRows) {
        __m512i weight[4];
        for (int part = 0; part < 4; ++part) weight[part] = _mm512_loadu_si512(panel + 64 * part);
        for (int token = 0; token < kCount; ++token) {
          int32_t four;
          std::memcpy(&four, tokens[token] + 4 * quad, sizeof(four));
          const __m512i a = _mm512_set1_epi32(four);
          for (int part = 0; part < 4; ++part) {
            sum[token][part] = _mm512_dpbusd_epi32(sum[token][part], a, weight[part]);
          }
        }
      }
    }
    for (int token = 0; token < kCount; ++token) {
      for (int part = 0; part < 4; ++part) {
        _mm512_storeu_si512(sums + token * onnxq::kCodeRows + 16 * part, sum[token][part]);
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
#include "matmul_codebook_tables.h"

const onnxq::CodeKernels* onnxq::code_kernels_vnni() {
  static constexpr CodeKernels kKernels = {"vnni",         4,       prepare,       multiply,
                                           prepare_tables, look_up, multiply_float};
  return &kKernels;
}
#else
const onnxq::CodeKernels* onnxq::code_kernels_vnni() { return nullptr; }
#endif
