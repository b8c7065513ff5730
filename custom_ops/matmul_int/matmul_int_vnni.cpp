#ifdef __AVX512VNNI__
#include "vector512.h"

namespace {

// Products of unsigned codes and signed tokens in one instruction.
struct Vector : onnxq::Vector512 {
  static constexpr int kTile = 12;
  struct Short {};
  template <int>
  static constexpr int kShort = 1;

  template <int, bool, bool>
  [[gnu::always_inline]] static void dot(Sums& sums, Short&, Codes codes, const int8_t* four) {
    int32_t word;
    __builtin_memcpy(&word, four, sizeof(word));
    sums = _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(word));
  }
};

}  // namespace

#include "matmul_int_source.h"

namespace onnxq {

const IntKernels* int_kernels_vnni() {
  static constexpr IntKernels kernels = {"vnni", kIntTokens, prepare, multiply};
  return &kernels;
}

}  // namespace onnxq

#else
#include "matmul_int.h"

namespace onnxq {
const IntKernels* int_kernels_vnni() { return nullptr; }
}  // namespace onnxq
#endif
