// AVX-512 VNNI and VBMI. `vpermb` looks up 64 codes at once by the low six bits of bytes: a table
// of 64 entries, made from the 4, 8 or 16 of the weight, picks one code out of a byte that holds
// several, so that codes need no masks and few shifts. Entries are kept as entry + 128, which
// `vpdpbusd` multiplies with signed activations; sums begin with what takes that away again.
#include "lut.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
#include "lut_vector512.h"

namespace onnxq {
namespace {

constexpr int kOffset = 128;

// For the tiles of lut_source.h, which the ones here stand for.
[[maybe_unused]] inline Sums dot(const uint8_t*, const int8_t*, int64_t) {
  return _mm512_setzero_si512();
}

}  // namespace
}  // namespace onnxq

#include "lut_source.h"

namespace onnxq {
namespace {

// What rows have of their own.
enum class Mode {
  kRow,     // a table; their scales come later
  kScales,  // scales of groups, and a table
  kTables,  // scales and tables of groups
};

// The tables that pick the first, second and third code out of six bits; of 4 bits, the one code.
template <int kBits>
struct Tables {
  __m512i first, second, third;

  explicit Tables(const uint8_t* entries)
      : first(table_of(entries)), second(moved<1>()), third(moved<2>()) {}

 private:
  template <int kPlace>
  __m512i moved() const {
    if constexpr (kBits * kPlace >= 6 || kBits == 4) return first;
    alignas(64) uint8_t index[64];
    for (int at = 0; at < 64; ++at) {
      index[at] = static_cast<uint8_t>((at >> (kBits * kPlace)) & ((1 << kBits) - 1));
    }
    return _mm512_shuffle_epi8(first, _mm512_load_si512(index));
  }
};

// Entries of two neighbouring units.
struct Pair {
  __m512i even, odd;
};

template <int kBits>
constexpr int kPairs = kBits == 4   ? 1
                       : kBits == 3 ? 4
                                    : 2;  // of a chunk
template <int kBits>
constexpr int64_t kChunk = (kBits == 3 ? 3 : 1) * kUnit;  // bytes

inline __m512i pick(__m512i table, __m512i line) { return _mm512_permutexvar_epi8(line, table); }

// Units 2 kPair and 2 kPair + 1 of a chunk.
template <int kBits, int kPair>
[[gnu::always_inline]] inline Pair pair_of(const uint8_t* lines, const Tables<kBits>& even,
                                           const Tables<kBits>& odd) {
  if constexpr (kBits == 4) {
    const __m512i line = bytes(lines);
    return {pick(even.first, line), pick(odd.first, _mm512_srli_epi16(line, 4))};
  } else if constexpr (kBits == 3) {
    const __m512i line = kPair < 3 ? bytes(lines + kPair * kUnit) : last_pair(lines);
    return {pick(even.first, line), pick(odd.second, line)};
  } else {
    const __m512i line = bytes(lines);
    if constexpr (kPair == 0) return {pick(even.first, line), pick(odd.second, line)};
    return {pick(even.third, line), pick(odd.third, _mm512_srli_epi16(line, 2))};
  }
}

// A token, and what is at a pair of units of it.
struct Token {
  const int8_t* codes;
  const int32_t* starts;
  const float* scales;

  Token(const LutToken& layout, const uint8_t* token)
      : codes(layout.codes_of(token)),
        starts(layout.starts_of(token)),
        scales(layout.scales_of(token)) {}
  __m512i code(int64_t unit) const { return bytes(codes + unit * kUnit); }
  __m512i start(int64_t index) const { return bytes(starts + index * (kUnit / 4)); }
};

// Scales of the groups of a unit, where the sums of their products lie.
struct GroupScales {
  const float* scales;
  __m512i places;

  GroupScales(const LutMatrix& w, int64_t row)
      : scales(w.scales + row * w.scale_row),
        places(_mm512_srli_epi32(
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
            w.group == 16   ? 2
            : w.group == 32 ? 3
                            : 4)) {}
  __m512 of(int64_t group) const {
    return _mm512_permutexvar_ps(places, _mm512_castps128_ps512(_mm_loadu_ps(scales + group)));
  }
};

// sum + scale * (products of a pair of units).
template <bool kGrouped>
[[gnu::always_inline]] inline __m512 add_pair(const LutMatrix& w, int64_t pair, Pair entries,
                                              const Token& token, const GroupScales& groups,
                                              __m512 sum) {
  const int64_t unit = pair * kUnitsPerBlock;
  const __m512 scale = spread(token.scales[pair]);
  if constexpr (!kGrouped) {
    Sums products = _mm512_dpbusd_epi32(token.start(pair), entries.even, token.code(unit));
    products = _mm512_dpbusd_epi32(products, entries.odd, token.code(unit + 1));
    return multiply_add(to_floats(products), scale, sum);
  }
  const Sums even = _mm512_dpbusd_epi32(token.start(unit), entries.even, token.code(unit));
  const Sums odd = _mm512_dpbusd_epi32(token.start(unit + 1), entries.odd, token.code(unit + 1));
  const __m512 even_scale = _mm512_mul_ps(scale, groups.of(w.groups[unit]));
  const __m512 odd_scale = _mm512_mul_ps(scale, groups.of(w.groups[unit + 1]));
  return multiply_add(to_floats(odd), odd_scale, multiply_add(to_floats(even), even_scale, sum));
}

static_assert(kLutRows == 4 && kLutTokens == 4);

// Totals of four vectors.
inline __m128 totals(const __m512* of) {
  const __m512 first =
      _mm512_add_ps(_mm512_unpacklo_ps(of[0], of[1]), _mm512_unpackhi_ps(of[0], of[1]));
  const __m512 second =
      _mm512_add_ps(_mm512_unpacklo_ps(of[2], of[3]), _mm512_unpackhi_ps(of[2], of[3]));
  const __m512 all =
      _mm512_add_ps(_mm512_shuffle_ps(first, second, 0x44), _mm512_shuffle_ps(first, second, 0xee));
  const __m256 half =
      _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_maskz_extractf32x8_ps(0xff, all, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// Pairs [kPair, kEnd) of a chunk of four rows.
template <int kBits, Mode kMode, int kEnd, int kPair = 0>
[[gnu::always_inline]] inline void add_chunk(const LutMatrix& w, int64_t row, int64_t chunk,
                                             const Tables<kBits>* tables, const Token& token,
                                             const GroupScales* groups, __m512* sum) {
  if constexpr (kPair < kEnd) {
    const int64_t pair = chunk * kPairs<kBits> + kPair;
#pragma GCC unroll 4
    for (int at = 0; at < kLutRows; ++at) {
      const uint8_t* lines = w.row(row + at) + chunk * kChunk<kBits>;
      // Rows are too short for the hardware to see which come next.
      if constexpr (kPair < kChunk<kBits> / kUnit) {
        __builtin_prefetch(lines + kLutRows * w.row_bytes + kPair * kUnit);
      }
      Pair entries;
      if constexpr (kMode == Mode::kTables) {
        const int64_t unit = pair * kUnitsPerBlock;
        const Tables<kBits> even(w.tables + w.table_at(row + at, unit));
        const Tables<kBits> odd(w.tables + w.table_at(row + at, unit + 1));
        entries = pair_of<kBits, kPair>(lines, even, odd);
      } else {
        entries = pair_of<kBits, kPair>(lines, tables[at], tables[at]);
      }
      sum[at] = add_pair<kMode != Mode::kRow>(w, pair, entries, token, groups[at], sum[at]);
    }
    add_chunk<kBits, kMode, kEnd, kPair + 1>(w, row, chunk, tables, token, groups, sum);
  }
}

template <int kBits, Mode kMode>
void one_token(const LutMatrix& w, const LutToken& layout, int64_t row, const uint8_t* from,
               float* sums) {
  const Token token(layout, from);
  const auto table = [&](int64_t at) { return w.tables + (row + at) * w.table_row; };
  const Tables<kBits> tables[kLutRows] = {Tables<kBits>(table(0)), Tables<kBits>(table(1)),
                                          Tables<kBits>(table(2)), Tables<kBits>(table(3))};
  const GroupScales groups[kLutRows] = {GroupScales(w, row), GroupScales(w, row + 1),
                                        GroupScales(w, row + 2), GroupScales(w, row + 3)};
  __m512 sum[kLutRows] = {zero(), zero(), zero(), zero()};
  const int64_t chunks = layout.blocks / kPairs<kBits>, left = layout.blocks % kPairs<kBits>;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    add_chunk<kBits, kMode, kPairs<kBits>>(w, row, chunk, tables, token, groups, sum);
  }
  if (left == 1) add_chunk<kBits, kMode, 1>(w, row, chunks, tables, token, groups, sum);
  if (left == 2) add_chunk<kBits, kMode, 2>(w, row, chunks, tables, token, groups, sum);
  if (left == 3) add_chunk<kBits, kMode, 3>(w, row, chunks, tables, token, groups, sum);
  alignas(16) float total[kLutRows];
  _mm_store_ps(total, totals(sum));
  for (int index = 0; index < kLutRows; ++index) sums[index * kLutTokens] = total[index];
}

template <int kBits>
void one_of_bits(const LutMatrix& w, const LutToken& layout, int64_t row, const uint8_t* token,
                 float* sums) {
  const auto kernel = !w.grouped           ? one_token<kBits, Mode::kRow>
                      : w.table_group == 0 ? one_token<kBits, Mode::kScales>
                                           : one_token<kBits, Mode::kTables>;
  kernel(w, layout, row, token, sums);
}

void one(const LutMatrix& w, const LutToken& layout, int64_t row, const uint8_t* token,
         float* sums) {
  const auto kernel = w.layout.bits == 2   ? one_of_bits<2>
                      : w.layout.bits == 3 ? one_of_bits<3>
                                           : one_of_bits<4>;
  kernel(w, layout, row, token, sums);
}

// Rows of a panel with kCount tokens.
template <bool kGrouped, int kCount>
void tile_of(const LutMatrix& w, const LutToken& layout, const uint8_t* panel, int64_t row,
             int64_t first, int64_t last, const uint8_t* tokens, float* sums) {
  constexpr int64_t kStride = kPanelUnits * kUnit;
  __m512 sum[kCount][kLutRows];
#pragma GCC unroll 4
  for (int at = 0; at < kCount; ++at) {
#pragma GCC unroll 4
    for (int index = 0; index < kLutRows; ++index) sum[at][index] = zero();
  }
  for (int64_t pair = first / kUnitsPerBlock; pair * kUnitsPerBlock < last; ++pair) {
    const uint8_t* entries = panel + (pair * kUnitsPerBlock - first) * kUnit;
#pragma GCC unroll 4
    for (int at = 0; at < kCount; ++at) {
      const Token token(layout, tokens + at * layout.size);
#pragma GCC unroll 4
      for (int index = 0; index < kLutRows; ++index) {
        const uint8_t* here = entries + index * kStride;
        const GroupScales groups(w, row + index);
        sum[at][index] = add_pair<kGrouped>(w, pair, {bytes(here), bytes(here + kUnit)}, token,
                                            groups, sum[at][index]);
      }
    }
  }
  for (int at = 0; at < kCount; ++at) {
    alignas(16) float total[kLutRows];
    _mm_store_ps(total, totals(sum[at]));
    for (int index = 0; index < kLutRows; ++index) sums[index * kLutTokens + at] = total[index];
  }
}

template <bool kGrouped>
void tiles(const LutMatrix& w, const LutToken& layout, const uint8_t* panel, int64_t row,
           int64_t first, int64_t last, const uint8_t* tokens, int count, float* sums) {
  if (count == kLutTokens) {
    return tile_of<kGrouped, kLutTokens>(w, layout, panel, row, first, last, tokens, sums);
  }
  for (int at = 0; at < count; ++at, tokens += layout.size) {
    tile_of<kGrouped, 1>(w, layout, panel, row, first, last, tokens, sums + at);
  }
}

void tile_vnni(const LutMatrix& w, const LutToken& layout, const uint8_t* panel, int64_t row,
               int64_t first, int64_t last, const uint8_t* tokens, int count, float* sums) {
  const auto kernel = w.grouped ? tiles<true> : tiles<false>;
  kernel(w, layout, panel, row, first, last, tokens, count, sums);
}

}  // namespace

const LutKernels* lut_kernels_vnni() {
  static constexpr LutKernels kernels = {"vnni",    kOffset, round_token, decode,
                                         tile_vnni, one,     expand,      tile_float};
  return &kernels;
}

}  // namespace onnxq

#else

namespace onnxq {
const LutKernels* lut_kernels_vnni() { return nullptr; }
}  // namespace onnxq
#endif
