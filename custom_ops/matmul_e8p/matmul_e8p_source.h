// Source of every matmul_e8p_*.cpp: a few rows are decoded into a panel that the nearest cache
// holds, and all tokens are multiplied by it. No standard library templates here: a template
// compiled for AVX-512 could be the copy that the linker keeps for everyone.
//
// What multiplies is a class D, one for whole numbers and one for floats:
//   Number, Factor   what the panel and the tokens are made of
//   Sum, Sums        a result, and a register of partial ones of kLanes columns
//   Weight, Token    registers of kLanes numbers of a row, of a token
//   kRows, kTokens   worked on at once; kUnits of a panel
//   kFlip            what bytes of numbers are exclusive-or'ed with
//   panel(unit, bits, to)          512 numbers; decode does it, for whole ones
//   weight, token, add             loads; a sum with products
//   add_totals(rows, sums)         adds the sum of all lanes of each of kRows
//   factors(layout, prepared, i)   the numbers of token i
//   result(sum, scale, ...)        y
#include <cstring>

#include "e8p_decode.h"
#include "matmul_e8p.h"

namespace onnxq {
namespace {

constexpr int64_t kManyTokens = 128;
constexpr int64_t kUnitNumbers = kE8pRows * kE8pColumns;

// kTokens tokens times the rows and units of a panel.
template <class D, int kTokens>
void add_panel(const typename D::Number* panel, int64_t units,
               const typename D::Factor* const* tokens, typename D::Sum (*sums)[kE8pRows]) {
  for (int64_t row = 0; row < kE8pRows; row += D::kRows) {
    typename D::Sums partial[kTokens][D::kRows];
    for (int t = 0; t < kTokens; ++t) {
      for (int r = 0; r < D::kRows; ++r) partial[t][r] = D::none();
    }
    for (int64_t unit = 0; unit < units; ++unit) {
      for (int64_t column = 0; column < kE8pColumns; column += D::kLanes) {
        const typename D::Number* from = panel + unit * kUnitNumbers + row * kE8pColumns + column;
        typename D::Token factor[kTokens];
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) {
          factor[t] = D::token(tokens[t] + unit * kE8pColumns + column);
        }
#pragma GCC unroll 8
        for (int r = 0; r < D::kRows; ++r) {
          const typename D::Weight weight = D::weight(from + r * kE8pColumns);
#pragma GCC unroll 4
          for (int t = 0; t < kTokens; ++t) {
            partial[t][r] = D::add(partial[t][r], weight, factor[t]);
          }
        }
      }
    }
    for (int t = 0; t < kTokens; ++t) D::add_totals(partial[t], sums[t] + row);
  }
}

// `count` tokens times the units of a panel.
template <class D>
void add_tokens(const typename D::Number* panel, int64_t units, const D& d, int64_t count,
                int64_t column, typename D::Sum (*sums)[kE8pRows]) {
  const typename D::Factor* tokens[D::kTokens];
  int64_t token = 0;
  for (; token + D::kTokens <= count; token += D::kTokens) {
    for (int t = 0; t < D::kTokens; ++t) tokens[t] = d.factors(token + t) + column;
    add_panel<D, D::kTokens>(panel, units, tokens, sums + token);
  }
  for (; token < count; ++token) {
    tokens[0] = d.factors(token) + column;
    add_panel<D, 1>(panel, units, tokens, sums + token);
  }
}

template <class D>
void multiply(const E8pMatrix& w, const uint8_t* prepared, int64_t tokens, float* y, int64_t stride,
              int64_t begin, int64_t end) {
  const int64_t units = w.units();
  for (int64_t first = 0; first < tokens; first += kManyTokens) {
    const int64_t count = tokens - first < kManyTokens ? tokens - first : kManyTokens;
    const D d(w, prepared, first);
    for (int64_t row = begin; row < end; row += kE8pRows) {
      const uint8_t* codes = w.codes + row / kE8pRows * w.block_bytes();
      alignas(64) typename D::Sum sums[kManyTokens][kE8pRows] = {};
      for (int64_t unit = 0; unit < units; unit += D::kUnits) {
        alignas(64) typename D::Number panel[D::kUnits * kUnitNumbers];
        const int64_t some = units - unit < D::kUnits ? units - unit : D::kUnits;
        for (int64_t at = 0; at < some; ++at, codes += w.unit_bytes()) {
          D::panel(codes, w.bits, panel + at * kUnitNumbers);
        }
        add_tokens<D>(panel, some, d, count, unit * kE8pColumns, sums);
      }
      const int64_t rows = end - row < kE8pRows ? end - row : kE8pRows;
      for (int64_t token = 0; token < count; ++token) {
        float* to = y + (first + token) * stride + row;
        for (int64_t at = 0; at < rows; ++at) {
          to[at] = d.result(sums[token][at], w.scales[row + at], token);
        }
      }
    }
  }
}

// Whole numbers times tokens rounded to int8; V multiplies. With kFlip 128 the panel holds each
// number plus 128, and 128 times the sum of the token is taken off.
template <class V>
struct Rounded : V {
  using Number = uint8_t;
  using Factor = int8_t;
  using Sum = int32_t;
  static constexpr int64_t kUnits = 32;

  Rounded(const E8pMatrix& w, const uint8_t* prepared, int64_t first)
      : layout(w), tokens(prepared + first * layout.stride) {}

  static void panel(const uint8_t* unit, int bits, uint8_t* to) {
    V::decode(unit, bits, V::kFlip, to);
  }
  const int8_t* factors(int64_t token) const {
    return layout.codes_of(tokens + token * layout.stride);
  }
  float result(int32_t sum, float scale, int64_t token) const {
    const uint8_t* at = tokens + token * layout.stride;
    sum -= V::kFlip * *layout.sums_of(at);
    return static_cast<float>(sum) * scale * layout.scale_of(at);
  }

  E8pToken layout;
  const uint8_t* tokens;
};

// Numbers times tokens in float32; V multiplies.
template <class V>
struct Plain : V {
  using Number = float;
  using Factor = float;
  using Sum = float;
  static constexpr int64_t kUnits = 8;

  Plain(const E8pMatrix& w, const uint8_t* prepared, int64_t first)
      : bytes(e8p_float_bytes(w)), tokens(prepared + first * bytes) {}

  static void panel(const uint8_t* unit, int bits, float* to) {
    alignas(64) uint8_t numbers[kUnitNumbers];
    V::decode(unit, bits, 0, numbers);
    for (int64_t at = 0; at < kUnitNumbers; ++at) to[at] = static_cast<int8_t>(numbers[at]);
  }
  const float* factors(int64_t token) const {
    return reinterpret_cast<const float*>(tokens + token * bytes);
  }
  float result(float sum, float scale, int64_t) const { return sum * scale; }

  int64_t bytes;
  const uint8_t* tokens;
};

// Tokens as MatMulInt rounds them.
void round_tokens(const IntKernels& kernels, const E8pMatrix& w, const float* a, int64_t begin,
                  int64_t end, uint8_t* prepared) {
  const E8pToken layout(w);
  const IntMatrix tokens = E8pToken::tokens_of(w);
  for (int64_t token = begin; token < end; ++token) {
    kernels.prepare(tokens, a + token * w.columns, 0, 1, prepared + token * layout.stride);
  }
}

void copy_tokens(const E8pMatrix& w, const float* a, int64_t begin, int64_t end,
                 uint8_t* prepared) {
  const int64_t bytes = e8p_float_bytes(w);
  const size_t used = static_cast<size_t>(w.columns) * sizeof(float);
  for (int64_t token = begin; token < end; ++token) {
    uint8_t* to = prepared + token * bytes;
    std::memcpy(to, a + token * w.columns, used);
    std::memset(to + used, 0, static_cast<size_t>(bytes) - used);
  }
}

}  // namespace
}  // namespace onnxq
