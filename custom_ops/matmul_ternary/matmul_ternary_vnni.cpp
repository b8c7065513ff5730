#include "matmul_ternary.h"

#ifdef __AVX512VNNI__
#include <immintrin.h>

namespace onnxq {
namespace {

constexpr int kParts = 3;  // vectors of 16 rows in a block
constexpr int kMost = 8;   // tokens worked on at once
constexpr int kAhead = 2048;

// Digits of the numbers 0 to 26 for rows 0, 16 and 32 on, twice: the sixth bit may be anything.
struct Tables {
  alignas(64) uint8_t digits[kParts][64];
};

constexpr Tables tables_of_digits() {
  Tables tables{};
  for (int number = 0; number < 64; ++number) {
    int rest = number % 32;
    for (auto& digits : tables.digits) {
      digits[number] = static_cast<uint8_t>(rest % 3);
      rest /= 3;
    }
  }
  return tables;
}

constexpr Tables kTables = tables_of_digits();

// Numbers of triple i of a unit; the upper three bits of a byte are anything.
template <int i>
[[gnu::always_inline]] inline __m512i numbers(const uint8_t* unit, __m512i fifth) {
  constexpr int kSelect = 0xca;  // a ? b : c
  __m512i low = _mm512_loadu_si512(unit + kIntVector * (i / 2));
  if constexpr (i % 2 == 1) low = _mm512_srli_epi16(low, 4);
  if constexpr (i < 4) fifth = _mm512_slli_epi16(fifth, 4 - i);
  if constexpr (i > 4) fifth = _mm512_srli_epi16(fifth, i - 4);
  return _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x0f), low, fifth, kSelect);
}

// Sums of products for kTokens tokens. Few tokens have several of them, for a chain of additions to
// the same register waits for each.
template <int kTokens>
struct Sums {
  static constexpr int kChains = kTokens == 1 ? 2 : 1;
  __m512i of[kTokens][kParts][kChains];
};

// Adds the products with four bytes of a token. With many tokens the instruction itself spreads
// them: GCC 12 would do so once for all parts, and move sums to memory for want of registers.
template <bool kMany>
[[gnu::always_inline]] inline void dot(__m512i& sum, __m512i digits, const int8_t* four) {
  if constexpr (kMany) {
    using Four = int8_t[4];
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(sum)
        : "v"(digits), "m"(*reinterpret_cast<const Four*>(four)));
  } else {
    int32_t word;
    __builtin_memcpy(&word, four, sizeof(word));
    sum = _mm512_dpbusd_epi32(sum, digits, _mm512_set1_epi32(word));
  }
}

// Triples i to 7 of a unit.
template <int kTokens, int i = 0>
[[gnu::always_inline]] inline void add_unit(const uint8_t* unit, __m512i fifth,
                                            const __m512i* tables, const int8_t* const* q,
                                            int64_t column, Sums<kTokens>& sums) {
  if constexpr (i < kIntUnit / 4) {
    const __m512i number = numbers<i>(unit, fifth);
    constexpr int kChain = i % Sums<kTokens>::kChains;
#pragma GCC unroll 3
    for (int part = 0; part < kParts; ++part) {
      const __m512i digits = _mm512_permutexvar_epi8(number, tables[part]);
#pragma GCC unroll 8
      for (int token = 0; token < kTokens; ++token) {
        dot<(kTokens > 4)>(sums.of[token][part][kChain], digits, q[token] + column + 4 * i);
      }
    }
    add_unit<kTokens, i + 1>(unit, fifth, tables, q, column, sums);
  }
}

// A block times kTokens tokens; results before the scales of the tokens.
template <int kTokens>
void multiply_block(const TritMatrix& w, int64_t block, const uint8_t* const* tokens,
                    __m512 (*y)[kParts]) {
  const IntToken layout(w.tokens);
  const int8_t* q[kTokens];
  for (int token = 0; token < kTokens; ++token) {
    q[token] = layout.codes_of(tokens[token]);
    for (int part = 0; part < kParts; ++part) y[token][part] = _mm512_setzero_ps();
  }
  __m512i tables[kParts];
  for (int part = 0; part < kParts; ++part) tables[part] = _mm512_load_si512(kTables.digits[part]);
  const uint8_t* unit = w.codes + block * w.tokens.all_units() * kTritUnit;
  const float* scales = w.scales + block * w.tokens.groups * kTritRows;
  int64_t column = 0;
  for (int64_t g = 0; g < w.tokens.groups; ++g, scales += kTritRows) {
    Sums<kTokens> sums;
#pragma GCC unroll 8
    for (int token = 0; token < kTokens; ++token) {
      const __m512i less = _mm512_set1_epi32(-layout.sums_of(tokens[token])[g]);
      for (auto& of_part : sums.of[token]) {
        of_part[0] = less;
        if constexpr (Sums<kTokens>::kChains == 2) of_part[1] = _mm512_setzero_si512();
      }
    }
    for (const int64_t end = column + w.tokens.units_of(g) * kIntUnit; column < end;
         column += kIntUnit, unit += kTritUnit) {
      for (int64_t line = 0; line < kTritUnit; line += kIntVector) {
        _mm_prefetch(reinterpret_cast<const char*>(unit) + kAhead + line, _MM_HINT_T0);
      }
      const __m512i fifth = _mm512_loadu_si512(unit + kTritFifth);
      add_unit<kTokens>(unit, fifth, tables, q, column, sums);
    }
#pragma GCC unroll 8
    for (int token = 0; token < kTokens; ++token) {
#pragma GCC unroll 3
      for (int part = 0; part < kParts; ++part) {
        __m512i sum = sums.of[token][part][0];
        if constexpr (Sums<kTokens>::kChains == 2) {
          sum = _mm512_add_epi32(sum, sums.of[token][part][1]);
        }
        const __m512 value = _mm512_cvtepi32_ps(sum);
        const __m512 scale = _mm512_load_ps(scales + kIntRows * part);
        y[token][part] = _mm512_fmadd_ps(value, scale, y[token][part]);
      }
    }
  }
}

// kTokens tokens from `first` on, of which `count` are there, times the rows of a block.
template <int kTokens>
void multiply_tokens(const TritMatrix& w, int64_t block, const uint8_t* prepared, int64_t first,
                     int64_t count, float* y, int64_t stride, int64_t rows) {
  const IntToken layout(w.tokens);
  const uint8_t* tokens[kTokens];
  for (int64_t token = 0; token < kTokens; ++token) {
    tokens[token] = prepared + (first + (token < count ? token : 0)) * layout.size;
  }
  __m512 results[kTokens][kParts];
  multiply_block<kTokens>(w, block, tokens, results);
  for (int64_t token = 0; token < count; ++token) {
    const __m512 scale = _mm512_set1_ps(layout.scale_of(tokens[token]));
    float* to = y + (first + token) * stride + block * kTritRows;
    for (int64_t part = 0; part < kParts && part * kIntRows < rows; ++part) {
      const int64_t left = rows - part * kIntRows;
      const __mmask16 there = static_cast<__mmask16>(left < kIntRows ? (1 << left) - 1 : -1);
      _mm512_mask_storeu_ps(to + part * kIntRows, there,
                            _mm512_mul_ps(results[token][part], scale));
    }
  }
}

void multiply(const TritMatrix& w, const uint8_t* prepared, int64_t tokens, float* y,
              int64_t stride, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row += kTritRows) {
    const int64_t block = row / kTritRows, rows = end - row < kTritRows ? end - row : kTritRows;
    for (int64_t first = 0; first < tokens; first += kMost) {
      const int64_t count = tokens - first < kMost ? tokens - first : kMost;
      const auto part = count == 1   ? multiply_tokens<1>
                        : count == 2 ? multiply_tokens<2>
                        : count <= 4 ? multiply_tokens<4>
                                     : multiply_tokens<kMost>;
      part(w, block, prepared, first, count, y, stride, rows);
    }
  }
}

}  // namespace

MultiplyTrits multiply_trits_vnni() { return multiply; }

}  // namespace onnxq

#else

namespace onnxq {
MultiplyTrits multiply_trits_vnni() { return nullptr; }
}  // namespace onnxq
#endif
