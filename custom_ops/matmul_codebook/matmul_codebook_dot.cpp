// Kernels in NEON with products of four signed bytes. Tokens are kept as q + 128: they are
// multiplied as q, and 128 times the sum of the weights comes from one more product for all tokens.
#include "matmul_codebook.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

#include <cstring>

namespace {

typedef float Vector __attribute__((vector_size(16)));

struct Isa {
  static constexpr int kTokens = 4;

  // 16 rows at a time.
  template <int kCount>
  static void dot(const int8_t* panel, int64_t quads, int books, const uint8_t* const* tokens,
                  int32_t* sums) {
    constexpr int64_t kStep = 4 * onnxq::kCodeRows;
    constexpr int kParts = 4;
    const int8x16_t ones = vdupq_n_s8(1);
    for (int64_t rows = 0; rows < onnxq::kCodeRows; rows += 4 * kParts) {
      int32x4_t sum[kCount][kParts], weights[kParts];
      for (int part = 0; part < kParts; ++part) {
        weights[part] = vdupq_n_s32(0);
        for (int token = 0; token < kCount; ++token) sum[token][part] = vdupq_n_s32(0);
      }
      const int8_t* from = panel + 4 * rows;
      for (int book = 0; book < books; ++book) {
        for (int64_t quad = 0; quad < quads; ++quad, from += kStep) {
          int8x16_t weight[kParts];
          for (int part = 0; part < kParts; ++part) {
            weight[part] = vld1q_s8(from + 16 * part);
            weights[part] = vdotq_s32(weights[part], weight[part], ones);
          }
          for (int token = 0; token < kCount; ++token) {
            const int8x16_t a = four(tokens[token] + 4 * quad);
            for (int part = 0; part < kParts; ++part) {
              sum[token][part] = vdotq_s32(sum[token][part], weight[part], a);
            }
          }
        }
      }
      for (int token = 0; token < kCount; ++token) {
        int32_t* to = sums + token * onnxq::kCodeRows + rows;
        for (int part = 0; part < kParts; ++part) {
          vst1q_s32(to + 4 * part, vaddq_s32(sum[token][part], vshlq_n_s32(weights[part], 7)));
        }
      }
    }
  }

  static Vector madd(Vector a, Vector b, Vector c) {
    return reinterpret_cast<Vector>(vfmaq_f32(reinterpret_cast<float32x4_t>(c),
                                              reinterpret_cast<float32x4_t>(a),
                                              reinterpret_cast<float32x4_t>(b)));
  }

 private:
  // Four columns of a token, for all rows: q + 128 with its highest bit turned is q.
  static int8x16_t four(const uint8_t* columns) {
    uint32_t word;
    std::memcpy(&word, columns, sizeof(word));
    return vreinterpretq_s8_u32(vdupq_n_u32(word ^ 0x80808080u));
  }
};

}  // namespace

#include "matmul_codebook_source.h"

const onnxq::CodeKernels* onnxq::code_kernels_dot() {
  static constexpr CodeKernels kKernels = {"dot",   0,       prepare,       multiply,
                                           nullptr, nullptr, multiply_float};
  return &kKernels;
}
#else
const onnxq::CodeKernels* onnxq::code_kernels_dot() { return nullptr; }
#endif
