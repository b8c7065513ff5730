#include "../cpu/cpu.h"
#include "matmul_e8p_source.h"

namespace onnxq {
namespace {

// Eight lanes, for the compiler to make vectors of.
struct Whole {
  static constexpr int kRows = 2, kTokens = 1, kLanes = 64;
  static constexpr uint8_t kFlip = 0;
  static constexpr auto decode = e8p_decode;
  using Sums = int32_t;
  using Weight = const uint8_t*;
  using Token = const int8_t*;

  static Sums none() { return 0; }
  static Weight weight(const uint8_t* from) { return from; }
  static Token token(const int8_t* from) { return from; }
  static Sums add(Sums sums, Weight weight, Token token) {
    for (int lane = 0; lane < kLanes; ++lane) {
      sums += static_cast<int8_t>(weight[lane]) * token[lane];
    }
    return sums;
  }
  static void add_totals(const Sums* rows, int32_t* sums) {
    for (int row = 0; row < kRows; ++row) sums[row] += total(rows[row]);
  }
  static int32_t total(Sums sums) { return sums; }
};

struct Single {
  static constexpr auto decode = e8p_decode;
  static constexpr int kRows = 2, kTokens = 1, kLanes = 8;
  struct Sums {
    float lane[kLanes];
  };
  using Weight = const float*;
  using Token = const float*;

  static Sums none() { return {}; }
  static Weight weight(const float* from) { return from; }
  static Token token(const float* from) { return from; }
  static Sums add(Sums sums, Weight weight, Token token) {
    for (int lane = 0; lane < kLanes; ++lane) sums.lane[lane] += weight[lane] * token[lane];
    return sums;
  }
  static void add_totals(const Sums* rows, float* sums) {
    for (int row = 0; row < kRows; ++row) sums[row] += total(rows[row]);
  }
  static float total(const Sums& sums) {
    const float* s = sums.lane;
    return ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
  }
};

void prepare(const E8pMatrix& w, const float* a, int64_t begin, int64_t end, uint8_t* prepared) {
  round_tokens(int_kernels_generic(), w, a, begin, end, prepared);
}

}  // namespace

const E8pKernels& e8p_kernels_generic() {
  static constexpr E8pKernels kernels = {
      "generic", {prepare, multiply<Rounded<Whole>>}, {copy_tokens, multiply<Plain<Single>>}};
  return kernels;
}

const E8pKernels& e8p_kernels() {
  const E8pKernels* kernels = nullptr;
  switch (instructions()) {
    case Instructions::kAmx:
    case Instructions::kVnni:
      kernels = e8p_kernels_vnni();
      break;
    case Instructions::kAvx512:
      kernels = e8p_kernels_avx512();
      break;
    case Instructions::kAvx2:
      kernels = e8p_kernels_avx2();
      break;
    case Instructions::kGeneric:
      break;
  }
  return kernels != nullptr ? *kernels : e8p_kernels_generic();
}

}  // namespace onnxq
