#ifdef __AVX512VNNI__
#include "e8p_panel_vnni.h"
#include "e8p_single_vnni.h"
#include "e8p_vector512.h"
#include "matmul_e8p_source.h"

namespace onnxq {
namespace {

// Numbers plus 128 times tokens in one instruction.
struct Whole {
  static constexpr int kRows = 8, kTokens = 3, kLanes = 64;
  static constexpr uint8_t kFlip = 128;
  static constexpr auto decode = decode_panel;
  using Sums = __m512i;
  using Weight = __m512i;
  using Token = __m512i;

  static Sums none() { return _mm512_setzero_si512(); }
  static Weight weight(const uint8_t* from) { return _mm512_load_si512(from); }
  static Token token(const int8_t* from) { return _mm512_load_si512(from); }
  static Sums add(Sums sums, Weight weight, Token token) {
    return _mm512_dpbusd_epi32(sums, weight, token);
  }
  static void add_totals(const Sums* rows, int32_t* sums) { add_totals512(rows, sums); }
};

struct Single : Single512 {
  static constexpr auto decode = decode_panel;
};

void prepare(const E8pMatrix& w, const float* a, int64_t begin, int64_t end, uint8_t* prepared) {
  round_tokens(*int_kernels_vnni(), w, a, begin, end, prepared);
  const E8pToken layout(w);
  for (int64_t token = begin; token < end; ++token) {
    uint8_t* at = prepared + token * layout.stride;
    sum_runs(layout.codes_of(at), w.units(), at + layout.coarse, at + layout.fine);
  }
}

void multiply_rounded(const E8pMatrix& w, const uint8_t* prepared, int64_t tokens, float* y,
                      int64_t stride, int64_t begin, int64_t end) {
  constexpr int64_t kFew = 2;  // each for itself, which is faster than a panel for both
  if (tokens > kFew) {
    return multiply<Rounded<Whole>>(w, prepared, tokens, y, stride, begin, end);
  }
  const E8pToken layout(w);
  constexpr decltype(&multiply_single<2>) kByBits[] = {multiply_single<2>, multiply_single<3>,
                                                       multiply_single<4>};
  for (int64_t token = 0; token < tokens; ++token) {
    kByBits[w.bits - 2](w, prepared + token * layout.stride, y + token * stride, begin, end);
  }
}

}  // namespace

const E8pKernels* e8p_kernels_vnni() {
  static constexpr E8pKernels kernels = {
      "vnni", {prepare, multiply_rounded}, {copy_tokens, multiply<Plain<Single>>}};
  return &kernels;
}

}  // namespace onnxq

#else
#include "matmul_e8p.h"

namespace onnxq {
const E8pKernels* e8p_kernels_vnni() { return nullptr; }
}  // namespace onnxq
#endif
