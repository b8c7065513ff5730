// Source of matmul_int_avx2.cpp, matmul_int_avx512.cpp and matmul_int_vnni.cpp, which each give it
// the vector type `V` and ONNXQ_ISA, and are its only readers. No standard library templates here:
// a template compiled for AVX-512 could be the copy that the linker keeps for everyone.
//
// V has kLanes rows (those of a block, or half of them), kTile tokens (4, 8 or 12) worked on at
// once, registers `Codes` of bytes, `Sums` of int32 and `Floats`, and
//   dot<bits>(sums, codes, four)  adds the products with four bytes of a token; sums of several
//   may be kept short, as `Short`, until `flush` adds them: kShort<bits> calls are safe
#include "decoded.h"

namespace onnxq {
namespace {

// Sums of products for kTokens tokens. One token alone has several, for a chain of additions to
// the same register waits for each.
template <class V, int kTokens>
struct Products {
  static constexpr int kChains = kTokens == 1 ? 4 : kTokens == 2 ? 2 : 1;
  typename V::Sums sums[kTokens][kChains];
  typename V::Short shorts[kTokens];

  [[gnu::always_inline]] void clear() {
    for (int token = 0; token < kTokens; ++token) {
      for (int chain = 0; chain < kChains; ++chain) sums[token][chain] = V::no_sums();
    }
  }
  [[gnu::always_inline]] typename V::Sums total(int token) const {
    if constexpr (kChains == 4) {
      return V::add(V::add(sums[token][0], sums[token][1]), V::add(sums[token][2], sums[token][3]));
    } else if constexpr (kChains == 2) {
      return V::add(sums[token][0], sums[token][1]);
    } else {
      return sums[token][0];
    }
  }
};

// Tokens that lie one behind the other, by pointers that all find room in registers: one for each
// three of them.
template <int kTokens>
struct Tokens {
  const uint8_t* triples[(kTokens + 2) / 3];
  int64_t size;

  Tokens(const uint8_t* first, int64_t bytes) : size(bytes) {
    for (int triple = 0; 3 * triple < kTokens; ++triple)
      triples[triple] = first + 3 * triple * size;
  }
  [[gnu::always_inline]] const uint8_t* at(int token) const {
    return triples[token / 3] + token % 3 * size;
  }
};

// Vectors i to 7 of a unit.
template <class V, int kBits, int kTokens, int i = 0>
[[gnu::always_inline]] inline void add_unit(const uint8_t* unit, const Tokens<kTokens>& tokens,
                                            int64_t column, Products<V, kTokens>& products) {
  if constexpr (i < 8) {
    const typename V::Codes codes = decoded<V, kBits, i>(unit);
    constexpr int kShort = V::template kShort<kBits>;
    constexpr int kChain = i / kShort % Products<V, kTokens>::kChains;
#pragma GCC unroll 12
    for (int token = 0; token < kTokens; ++token) {
      const int8_t* four = reinterpret_cast<const int8_t*>(tokens.at(token) + column + 4 * i);
      V::template dot<kBits, i % kShort == 0, i % kShort == kShort - 1>(
          products.sums[token][kChain], products.shorts[token], codes, four);
    }
    add_unit<V, kBits, kTokens, i + 1>(unit, tokens, column, products);
  }
}

// kLanes rows of a block, from `lane` on, times kTokens tokens: results before the scale of the
// token. With ratios the sums of all groups are kept in int32.
template <class V, int kBits, bool kHasRatios, int kTokens>
void multiply_block(const IntMatrix& w, int64_t block, int lane, const uint8_t* first,
                    float (*results)[kIntRows]) {
  const IntToken layout(w);
  const Tokens<kTokens> tokens(first, layout.size);
  const uint8_t* unit = w.codes + block * w.block_bytes() + 4 * lane;
  const uint8_t* zeros = w.zeros + block * w.groups * kIntRows + lane;
  const uint8_t* ratios = kHasRatios ? w.ratios + (zeros - w.zeros) : nullptr;
  const float* scales = w.scales + block * kIntRows * (kHasRatios ? 1 : w.groups) + lane;
  Products<V, kTokens> products;
  typename V::Floats y[kTokens];
  typename V::Sums whole[kTokens];
  for (int token = 0; token < kTokens; ++token) {
    y[token] = V::no_floats();
    whole[token] = V::no_sums();
  }
  int64_t column = 0, sums = layout.sums;
  for (int64_t g = 0; g < w.groups; ++g) {
    products.clear();
    for (const int64_t end = column + w.units_of(g) * kIntUnit; column < end; column += kIntUnit) {
      V::template prefetch<kBits>(unit);
      add_unit<V, kBits, kTokens>(unit, tokens, column, products);
      unit += kBits * kIntVector;
    }
    const typename V::Sums zero = V::widen(zeros + g * kIntRows);
#pragma GCC unroll 12
    for (int token = 0; token < kTokens; ++token) {
      const int32_t code_sum = *reinterpret_cast<const int32_t*>(tokens.at(token) + sums);
      const typename V::Sums sum =
          V::subtract(products.total(token), V::multiply(zero, V::all(code_sum)));
      if constexpr (kHasRatios) {
        const typename V::Sums ratio = V::widen(ratios + g * kIntRows);
        whole[token] = V::add(whole[token], V::multiply(sum, ratio));
      } else {
        const typename V::Floats scale = V::load_floats(scales + g * kIntRows);
        y[token] = V::multiply_add(V::floats(sum), scale, y[token]);
      }
    }
    sums += static_cast<int64_t>(sizeof(int32_t));
  }
  for (int token = 0; token < kTokens; ++token) {
    if constexpr (kHasRatios) {
      y[token] = V::multiply(V::floats(whole[token]), V::load_floats(scales));
    }
    V::store(results[token] + lane, y[token]);
  }
}

// kTokens tokens from `first` on, of which `count` are there, times the rows of a block. What lies
// behind the tokens is multiplied too, and dropped.
template <class V, int kBits, bool kHasRatios, int kTokens>
void multiply_tokens(const IntMatrix& w, int64_t block, const uint8_t* prepared, int64_t first,
                     int64_t count, float* y, int64_t stride, int64_t rows) {
  const IntToken layout(w);
  alignas(64) float results[kTokens][kIntRows];
  const uint8_t* token = prepared + first * layout.size;
  for (int lane = 0; lane < kIntRows; lane += V::kLanes) {
    multiply_block<V, kBits, kHasRatios, kTokens>(w, block, lane, token, results);
  }
  for (int64_t at = 0; at < count; ++at, token += layout.size) {
    const float scale = layout.scale_of(token);
    float* to = y + (first + at) * stride + block * kIntRows;
    for (int64_t row = 0; row < rows; ++row) to[row] = results[at][row] * scale;
  }
}

// Tokens that are multiplied at once where `left` are left: at most three too many, see kIntTokens.
template <class V>
int tokens_at_once(int64_t left) {
  if (left <= 4) return left <= 2 ? static_cast<int>(left) : 4;
  const bool is_eight = left <= 8 || (left > 12 && left <= 16);
  return V::kTile > 8 && is_eight ? 8 : V::kTile;
}

template <class V, int kBits, bool kHasRatios>
void multiply_bits(const IntMatrix& w, const uint8_t* prepared, int64_t tokens, float* y,
                   int64_t stride, int64_t begin, int64_t end) {
  constexpr auto kOne = multiply_tokens<V, kBits, kHasRatios, 1>;
  constexpr auto kTwo = multiply_tokens<V, kBits, kHasRatios, 2>;
  constexpr auto kFour = multiply_tokens<V, kBits, kHasRatios, 4>;
  constexpr auto kEight = multiply_tokens < V, kBits, kHasRatios, V::kTile < 8 ? V::kTile : 8 > ;
  constexpr auto kTile = multiply_tokens<V, kBits, kHasRatios, V::kTile>;
  for (int64_t row = begin; row < end; row += kIntRows) {
    const int64_t block = row / kIntRows, rows = end - row < kIntRows ? end - row : kIntRows;
    for (int64_t first = 0, count; first < tokens; first += count) {
      const int64_t left = tokens - first, many = tokens_at_once<V>(left);
      const auto by = many == 1   ? kOne
                      : many == 2 ? kTwo
                      : many == 4 ? kFour
                      : many == 8 ? kEight
                                  : kTile;
      count = left < many ? left : many;
      by(w, block, prepared, first, count, y, stride, rows);
    }
  }
}

using MultiplyBits = decltype(&multiply_bits<Vector, 1, false>);

template <bool kHasRatios, int kBits>
constexpr MultiplyBits multiply_of() {
  if constexpr (kHasRatios && kBits > kIntRatioBits) {
    return nullptr;
  } else {
    return multiply_bits<Vector, kBits, kHasRatios>;
  }
}

void multiply(const IntMatrix& w, const uint8_t* prepared, int64_t tokens, float* y, int64_t stride,
              int64_t begin, int64_t end) {
  static constexpr MultiplyBits kByBits[2][8] = {
      {multiply_of<false, 1>(), multiply_of<false, 2>(), multiply_of<false, 3>(),
       multiply_of<false, 4>(), multiply_of<false, 5>(), multiply_of<false, 6>(),
       multiply_of<false, 7>(), multiply_of<false, 8>()},
      {multiply_of<true, 1>(), multiply_of<true, 2>(), multiply_of<true, 3>(),
       multiply_of<true, 4>()}};
  kByBits[w.ratios != nullptr][w.bits - 1](w, prepared, tokens, y, stride, begin, end);
}

// `count` floats to int8, filled up with zeros to whole units; the sum of the codes.
template <class V>
[[gnu::always_inline]] inline int32_t round_group(const float* a, int64_t count, int64_t units,
                                                  float inverse, int8_t* q) {
  typename V::Sums sums = V::no_sums();
  int64_t at = 0;
  for (; at + V::kLanes <= count; at += V::kLanes) {
    const typename V::Sums rounded = V::rounded(V::load_floats(a + at), inverse);
    sums = V::add(sums, rounded);
    V::store_bytes(q + at, rounded);
  }
  const int64_t end = units * kIntUnit;
  for (; at < end; at += V::kLanes) {
    const typename V::Sums rounded = V::rounded(V::load_first(a + at, count - at), inverse);
    sums = V::add(sums, rounded);
    V::store_bytes(q + at, rounded);
  }
  return V::reduce(sums);
}

void prepare(const IntMatrix& w, const float* a, int64_t begin, int64_t end, uint8_t* prepared) {
  const IntToken layout(w);
  for (int64_t token = begin; token < end; ++token) {
    const float* from = a + token * w.columns;
    uint8_t* to = prepared + token * layout.size;
    float largest = Vector::largest(from, w.columns);
    if (largest < kIntLeast) largest = kIntLeast;
    const float inverse = 127.0f / largest;
    int8_t* q = reinterpret_cast<int8_t*>(to);
    int32_t* sums = reinterpret_cast<int32_t*>(to + layout.sums);
    for (int64_t g = 0; g < w.groups; ++g) {
      const int64_t first = g * w.group;
      const int64_t count = w.columns - first < w.group ? w.columns - first : w.group;
      sums[g] = round_group<Vector>(from + first, count, w.units_of(g), inverse, q);
      q += w.units_of(g) * kIntUnit;
    }
    *reinterpret_cast<float*>(to + layout.scale) = largest / 127.0f;
  }
}

}  // namespace
}  // namespace onnxq
