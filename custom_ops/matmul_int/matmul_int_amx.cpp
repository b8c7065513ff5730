#ifdef __AMX_INT8__
#include <immintrin.h>

#include "../cpu/cpu.h"
#include "decoded.h"
#include "vector512.h"

namespace onnxq {
namespace {

// Tiles are products of 16 tokens and 16 rows. Two tiles of tokens meet the tiles of two blocks, so
// that each tile that is loaded is used twice. Codes are unpacked to int8 once for all tokens of a
// call, up to kTokens of them, a chunk of columns at a time.
constexpr int64_t kTile = 16, kTokens = 128, kChunk = 16;  // tokens; tokens; units
constexpr int64_t kTileBytes = kTile * kIntVector, kUnitBytes = kIntUnit * kIntRows;
constexpr int64_t kFew = 8;  // so few tokens are as fast without tiles

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Tiles 0 to 3 are sums, 4 and 5 tokens, 6 and 7 weights, of `bytes` columns.
constexpr TileConfig config_of(uint16_t bytes) {
  TileConfig config{};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = tile == 4 || tile == 5 ? bytes : 64;
    config.rows[tile] = tile >= 6 ? static_cast<uint8_t>(bytes / 4) : 16;
  }
  return config;
}

// In static storage: compilers have optimised a configuration off the stack.
alignas(64) constexpr TileConfig kOneUnit = config_of(32), kTwoUnits = config_of(64);

// A unit of a block: (code - zero) * ratio as int8, with (zero * ratio) in every byte of `offset`
// and the ratio in every word of `factor`.
template <int kBits, bool kHasRatios, int i = 0>
[[gnu::always_inline]] inline void unpack_unit(const uint8_t* unit, __m512i factor, __m512i offset,
                                               int8_t* to) {
  if constexpr (i < 8) {
    __m512i codes = decoded<Vector512, kBits, i>(unit);
    // Products of bytes are less than 256: two at a time in words.
    if constexpr (kHasRatios) codes = _mm512_mullo_epi16(codes, factor);
    _mm512_store_si512(to + kIntVector * i, _mm512_sub_epi8(codes, offset));
    unpack_unit<kBits, kHasRatios, i + 1>(unit, factor, offset, to);
  }
}

// Units of a block from `unit` on; 8-bit codes, which need not fit without their zero, less 128.
template <int kBits, bool kHasRatios>
void unpack(const IntMatrix& w, int64_t block, int64_t unit, int64_t units, int8_t* to) {
  const uint8_t* from = w.codes + block * w.block_bytes() + unit * kBits * kIntVector;
  const int64_t end = unit + units;
  for (int64_t g = unit / w.units; unit < end; ++g) {
    const int64_t side = (block * w.groups + g) * kIntRows;
    __m512i factor = _mm512_setzero_si512();
    __m512i offset = kBits == 8 ? _mm512_set1_epi32(128) : Vector512::widen(w.zeros + side);
    if constexpr (kHasRatios) {
      factor = Vector512::widen(w.ratios + side);
      offset = _mm512_mullo_epi32(offset, factor);
      factor = _mm512_mullo_epi32(factor, _mm512_set1_epi32(0x00010001));
    }
    offset = _mm512_mullo_epi32(offset, _mm512_set1_epi32(0x01010101));
    const int64_t group_end = (g + 1) * w.units < end ? (g + 1) * w.units : end;
    for (; unit < group_end; ++unit) {
      unpack_unit<kBits, kHasRatios>(from, factor, offset, to);
      from += kBits * kIntVector;
      to += kUnitBytes;
    }
  }
}

using Unpack = decltype(&unpack<1, false>);

Unpack unpack_of(const IntMatrix& w) {
  static constexpr Unpack kUnpacks[2][8] = {
      {unpack<1, false>, unpack<2, false>, unpack<3, false>, unpack<4, false>, unpack<5, false>,
       unpack<6, false>, unpack<7, false>, unpack<8, false>},
      {unpack<1, true>, unpack<2, true>, unpack<3, true>, unpack<4, true>, unpack<5, true>,
       unpack<6, true>, unpack<7, true>, unpack<8, true>}};
  return kUnpacks[w.ratios != nullptr][w.bits - 1];
}

// What one call works on: two blocks, and tokens in tiles.
struct Work {
  int8_t weights[2][kChunk * kUnitBytes];
  int32_t sums[kTokens / kTile][2][kTile * kIntRows];
  float y[kTokens / kTile][2][kTile * kIntRows];
};

// Tokens of kTiles tiles times a chunk: sums of both blocks. `step` is the columns of a tile.
template <int kTiles>
void add_products(const int8_t* tokens, int64_t token_size, const Work& work, int64_t columns,
                  int64_t step, bool is_first, int32_t (*sums)[2][kTile * kIntRows]) {
  if (is_first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums[0][0], 64);
    _tile_loadd(1, sums[0][1], 64);
    if (kTiles == 2) {
      _tile_loadd(2, sums[kTiles - 1][0], 64);
      _tile_loadd(3, sums[kTiles - 1][1], 64);
    }
  }
  for (int64_t column = 0; column < columns; column += step) {
    _tile_loadd(4, tokens + column, token_size);
    _tile_loadd(6, work.weights[0] + column * kIntRows, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, work.weights[1] + column * kIntRows, 64);
    _tile_dpbssd(1, 4, 7);
    if (kTiles == 2) {
      _tile_loadd(5, tokens + column + kTile * token_size, token_size);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0][0], 64);
  _tile_stored(1, sums[0][1], 64);
  if (kTiles == 2) {
    _tile_stored(2, sums[kTiles - 1][0], 64);
    _tile_stored(3, sums[kTiles - 1][1], 64);
  }
}

// y (+)= sums * scale, of one tile; what 8-bit codes lack, (128 - zero) * sum of the token, added.
template <bool kIsWide>
void add_scaled(const int32_t* sums, __m512 scale, __m512i lack, const uint8_t* token,
                const IntToken& layout, int64_t g, bool is_first, float* y) {
#pragma GCC unroll 4
  for (int64_t row = 0; row < kTile; ++row, sums += kIntRows, y += kIntRows) {
    __m512i sum = _mm512_load_si512(sums);
    if constexpr (kIsWide) {
      const int32_t codes = layout.sums_of(token + row * layout.size)[g];
      sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(lack, _mm512_set1_epi32(codes)));
    }
    const __m512 value = _mm512_cvtepi32_ps(sum);
    const __m512 before = is_first ? _mm512_setzero_ps() : _mm512_load_ps(y);
    _mm512_store_ps(y, _mm512_fmadd_ps(value, scale, before));
  }
}

// Tokens, `count` of them, times one or two blocks, into work.y.
void multiply_pair(const IntMatrix& w, Unpack unpack, int64_t block, int64_t blocks,
                   const uint8_t* tokens, int64_t count, Work& work) {
  const IntToken layout(w);
  const int64_t step = w.units % 2 == 0 ? 2 * kIntUnit : kIntUnit;
  const int64_t tiles = (count + kTile - 1) / kTile;
  const int64_t spans = w.ratios != nullptr ? 1 : w.groups;  // of columns summed in int32
  int64_t unit = 0;
  for (int64_t g = 0; g < spans; ++g) {
    const int64_t span_end = spans == 1 ? w.all_units() : unit + w.units_of(g);
    __m512 scale[2];
    __m512i lack[2];
    for (int64_t at = 0; at < 2; ++at) {
      const int64_t side = ((block + (at < blocks ? at : 0)) * spans + g) * kIntRows;
      scale[at] = _mm512_load_ps(w.scales + side);
      lack[at] = _mm512_sub_epi32(_mm512_set1_epi32(128), Vector512::widen(w.zeros + side));
    }
    for (bool is_first = true; unit < span_end; is_first = false) {
      const int64_t units = span_end - unit < kChunk ? span_end - unit : kChunk;
      for (int64_t at = 0; at < blocks; ++at) unpack(w, block + at, unit, units, work.weights[at]);
      const bool is_last = unit + units == span_end;
      for (int64_t tile = 0; tile < tiles; tile += 2) {
        const uint8_t* from = tokens + tile * kTile * layout.size;
        const int8_t* q = layout.codes_of(from) + unit * kIntUnit;
        // Sums that are used up at once stay in the nearest cache.
        const auto sums = work.sums + (is_first && is_last ? 0 : tile);
        const int64_t both = tiles - tile < 2 ? 1 : 2;
        (both == 2 ? add_products<2> : add_products<1>)(q, layout.size, work, units * kIntUnit,
                                                        step, is_first, sums);
        for (int64_t at = 0; is_last && at < 2 * both; ++at) {
          (w.bits == 8 ? add_scaled<true>
                       : add_scaled<false>)(sums[at / 2][at % 2], scale[at % 2], lack[at % 2],
                                            from + at / 2 * kTile * layout.size, layout, g, g == 0,
                                            work.y[tile + at / 2][at % 2]);
        }
      }
      unit += units;
    }
  }
}

void write(const Work& work, const uint8_t* tokens, const IntToken& layout, int64_t count,
           int64_t rows, float* y, int64_t stride) {
  for (int64_t token = 0; token < count; ++token, y += stride) {
    const __m512 scale = _mm512_set1_ps(layout.scale_of(tokens + token * layout.size));
    for (int64_t at = 0; at < 2 && at * kIntRows < rows; ++at) {
      const int64_t left = rows - at * kIntRows;
      const __mmask16 there = static_cast<__mmask16>(left < kIntRows ? (1 << left) - 1 : -1);
      const float* from = work.y[token / kTile][at] + token % kTile * kIntRows;
      _mm512_mask_storeu_ps(y + at * kIntRows, there, _mm512_mul_ps(_mm512_load_ps(from), scale));
    }
  }
}

void multiply(const IntMatrix& w, const uint8_t* prepared, int64_t tokens, float* y, int64_t stride,
              int64_t begin, int64_t end) {
  if (tokens <= kFew || !amx_permitted()) {
    return int_kernels_vnni()->multiply(w, prepared, tokens, y, stride, begin, end);
  }
  _tile_loadconfig(w.units % 2 == 0 ? &kTwoUnits : &kOneUnit);
  const IntToken layout(w);
  const Unpack unpack = unpack_of(w);
  alignas(64) Work work;
  for (int64_t first = 0; first < tokens; first += kTokens) {
    const int64_t count = tokens - first < kTokens ? tokens - first : kTokens;
    const uint8_t* from = prepared + first * layout.size;
    for (int64_t row = begin; row < end; row += 2 * kIntRows) {
      const int64_t rows = end - row < 2 * kIntRows ? end - row : 2 * kIntRows;
      const int64_t blocks = rows > kIntRows ? 2 : 1;
      multiply_pair(w, unpack, row / kIntRows, blocks, from, count, work);
      write(work, from, layout, count, rows, y + first * stride + row, stride);
    }
  }
  _tile_release();
}

void prepare(const IntMatrix& w, const float* a, int64_t begin, int64_t end, uint8_t* prepared) {
  int_kernels_vnni()->prepare(w, a, begin, end, prepared);
}

}  // namespace

const IntKernels* int_kernels_amx() {
  static constexpr IntKernels kernels = {"amx", kTile, prepare, multiply};
  return &kernels;
}

}  // namespace onnxq

#else
#include "matmul_int.h"

namespace onnxq {
const IntKernels* int_kernels_amx() { return nullptr; }
}  // namespace onnxq
#endif
