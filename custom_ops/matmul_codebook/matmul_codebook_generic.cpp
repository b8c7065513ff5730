// Kernels for the baseline of the architecture, and the choice among all.
#include "../cpu/cpu.h"
#include "matmul_codebook.h"

namespace {

typedef float Vector __attribute__((vector_size(16)));

struct Isa {
  static constexpr int kTokens = 4;

  template <int kCount>
  static void dot(const int8_t* panel, int64_t quads, int books, const uint8_t* const* tokens,
                  int32_t* sums) {
    for (int64_t at = 0; at < kCount * onnxq::kCodeRows; ++at) sums[at] = 0;
    for (int book = 0; book < books; ++book) {
      for (int64_t quad = 0; quad < quads; ++quad, panel += 4 * onnxq::kCodeRows) {
        for (int token = 0; token < kCount; ++token) {
          const uint8_t* a = tokens[token] + 4 * quad;
          int32_t* to = sums + token * onnxq::kCodeRows;
          for (int64_t row = 0; row < onnxq::kCodeRows; ++row) {
            const int8_t* weight = panel + 4 * row;
            to[row] += a[0] * weight[0] + a[1] * weight[1] + a[2] * weight[2] + a[3] * weight[3];
          }
        }
      }
    }
  }

  static Vector madd(Vector a, Vector b, Vector c) { return a * b + c; }
};

}  // namespace

#include "matmul_codebook_source.h"

namespace onnxq {

const CodeKernels& code_kernels_generic() {
  static constexpr CodeKernels kKernels = {"generic", 0,       prepare,       multiply,
                                           nullptr,   nullptr, multiply_float};
  return kKernels;
}

const CodeKernels& code_kernels() {
  const Instructions may = instructions();
  const CodeKernels* best = nullptr;
  if (may >= Instructions::kVnni) best = code_kernels_vnni();
  if (best == nullptr && may >= Instructions::kAvx512) best = code_kernels_avx512();
  if (best == nullptr && may >= Instructions::kAvx2) best = code_kernels_avx2();
  if (best == nullptr && may >= Instructions::kDot) best = code_kernels_dot();
  return best == nullptr ? code_kernels_generic() : *best;
}

}  // namespace onnxq
