// The source of matmul_codebook_*.cpp. Each defines before it, in the namespace of its own:
//
//   struct Isa {
//     static constexpr int kTokens;   // tokens multiplied at once
//     // sums[token][64] of kCount tokens: q + 128 times the panel [quads][64][4] of each book.
//     template <int kCount>
//     static void dot(const int8_t* panel, int64_t quads, int books, const uint8_t* const* tokens,
//                     int32_t* sums);
//     static Vector madd(Vector, Vector, Vector);  // a * b + c, rounded once where it can be
//   };
#include <cstdint>
#include <cstring>

#include "matmul_codebook.h"

// Vectors wider than the registers go through memory; no function here is called from elsewhere.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace {

using onnxq::CodeMatrix;
using onnxq::CodeTile;
using onnxq::kCodeLeast;
using onnxq::kCodeRows;
using onnxq::kMostColumns;
using onnxq::kMostLookups;

// No templates of the standard library here: one compiled for newer CPUs could be the copy that the
// linker keeps for everyone.
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr int64_t kChunk = 256;  // tokens for which a panel is decoded once

// m of a token.
inline float largest(const CodeMatrix& w, const float* a) {
  int32_t top = 0;
  for (int64_t column = 0; column < w.columns; ++column) {
    int32_t bits;
    std::memcpy(&bits, a + column, sizeof(bits));
    bits &= 0x7fffffff;
    top = top < bits ? bits : top;
  }
  float most;
  std::memcpy(&most, &top, sizeof(most));
  return most < kCodeLeast ? kCodeLeast : most;
}

// Columns [begin, end) of a token; the last ones with what lies behind them.
inline void round_columns(const CodeMatrix& w, const float* a, float most, int64_t begin,
                          int64_t end, uint8_t* to) {
  // 1.5 * 2^23: a number added to it is rounded to a whole one, in the low bits.
  constexpr float kWhole = 12582912.0f;
  constexpr int32_t kWholeBits = 0x4b400000;
  const float inverse = 127.0f / most, scale = most / 127.0f;
  for (int64_t column = begin; column < end; ++column) {
    const float sum = a[column] * inverse + kWhole;
    int32_t bits;
    std::memcpy(&bits, &sum, sizeof(bits));
    to[column] = static_cast<uint8_t>(bits - kWholeBits + 128);
  }
  if (end < w.columns) return;
  std::memset(to + w.columns, 128, static_cast<size_t>(w.scale_at() - w.columns));
  std::memcpy(to + w.scale_at(), &scale, sizeof(scale));
}

void prepare(const CodeMatrix& w, const float* a, int64_t begin, int64_t end, uint8_t* prepared) {
  for (int64_t token = begin; token < end; ++token) {
    const float* from = a + token * w.columns;
    round_columns(w, from, largest(w, from), 0, w.columns, prepared + token * w.token_bytes());
  }
}

inline float scale_of(const CodeMatrix& w, const uint8_t* token) {
  float scale;
  std::memcpy(&scale, token + w.scale_at(), sizeof(scale));
  return scale;
}

inline int64_t row_of_lane(int64_t lane) { return lane % 2 * (kCodeRows / 2) + lane / 2; }

// Codes of a lookup of 64 rows, in the order of lanes.
inline void read_codes(const CodeMatrix& w, const uint8_t* codes, int64_t lookup, uint16_t* to) {
  if (w.entries <= 16) {
    const uint8_t* from = codes + lookup / 2 * kCodeRows;
    const int shift = lookup % 2 * 4;
    for (int64_t lane = 0; lane < kCodeRows; ++lane) to[lane] = (from[lane] >> shift) & 15;
  } else if (w.entries <= onnxq::kTableEntries) {
    const uint8_t* from = codes + lookup * kCodeRows;
    for (int64_t lane = 0; lane < kCodeRows; ++lane) to[lane] = from[lane];
  } else {
    std::memcpy(to, codes + lookup * kCodeRows * 2, kCodeRows * 2);
  }
}

// The panels of all books, [book][quad][64 rows][4 columns].
template <int kDimension>
void decode_runs(const CodeMatrix& w, const CodeTile& tile, const uint8_t* codes,
                 const int8_t* books, int8_t* panel) {
  const int64_t quads = tile.quads(), size = w.entries * kDimension;
  for (int64_t lookup = 0; lookup < tile.lookups; ++lookup) {
    const int64_t column = lookup / w.books * kDimension, book = lookup % w.books;
    const int8_t* entries = books + book * size;
    int8_t* to = panel + (book * quads + column / 4) * kCodeRows * 4 + column % 4;
    uint16_t found[kCodeRows];
    read_codes(w, codes, lookup, found);
    for (int64_t lane = 0; lane < kCodeRows; ++lane) {
      const int8_t* entry = entries + found[lane] * kDimension;
      int8_t* here = to + row_of_lane(lane) * 4;
      std::memcpy(here, entry, kDimension < 4 ? kDimension : 4);
      if (kDimension == 8) std::memcpy(here + kCodeRows * 4, entry + 4, 4);
    }
  }
}

void decode(const CodeMatrix& w, const CodeTile& tile, const uint8_t* codes, const int8_t* books,
            int8_t* panel) {
  const int64_t quads = tile.quads();
  for (int64_t book = 1; tile.columns % 4 != 0 && book <= w.books; ++book) {
    std::memset(panel + (book * quads - 1) * kCodeRows * 4, 0, kCodeRows * 4);
  }
  switch (w.dimension) {
    case 1:
      return decode_runs<1>(w, tile, codes, books, panel);
    case 2:
      return decode_runs<2>(w, tile, codes, books, panel);
    case 4:
      return decode_runs<4>(w, tile, codes, books, panel);
    default:
      return decode_runs<8>(w, tile, codes, books, panel);
  }
}

// Up to one quad more than the columns of each book.
constexpr int64_t kPanel = kMostLookups * 8 * kCodeRows;

inline void add_scaled(const int32_t* sums, const int32_t* offsets, const float* scales,
                       float* to) {
  for (int64_t row = 0; row < kCodeRows; ++row) {
    to[row] += static_cast<float>(sums[row] - offsets[row]) * scales[row];
  }
}

template <int kCount>
void multiply_tokens(const CodeMatrix& w, const CodeTile& tile, const int8_t* panel,
                     const uint8_t* tokens, const int32_t* offsets, const float* scales,
                     float* sums) {
  const uint8_t* each[kCount];
  for (int token = 0; token < kCount; ++token) {
    each[token] = tokens + token * w.token_bytes() + tile.column;
  }
  alignas(64) int32_t whole[kCount * kCodeRows];
  Isa::dot<kCount>(panel, tile.quads(), w.books, each, whole);
  for (int token = 0; token < kCount; ++token) {
    add_scaled(whole + token * kCodeRows, offsets, scales, sums + token * kCodeRows);
  }
}

void multiply(const CodeMatrix& w, const uint8_t* prepared, int64_t tokens, float* y,
              int64_t stride, int64_t begin, int64_t end) {
  alignas(64) int8_t panel[kPanel];
  alignas(64) float sums[kChunk * kCodeRows];
  const int64_t tile_count = static_cast<int64_t>(w.tiles.size());
  for (int64_t first = 0; first < tokens; first += kChunk) {
    const int64_t count = least(kChunk, tokens - first);
    const uint8_t* chunk = prepared + first * w.token_bytes();
    for (int64_t row = begin; row < end; row += kCodeRows) {
      const int64_t block = row / kCodeRows;
      std::memset(sums, 0, static_cast<size_t>(count * kCodeRows) * sizeof(float));
      for (int64_t index = 0; index < tile_count; ++index) {
        const CodeTile& tile = w.tiles[static_cast<size_t>(index)];
        decode(w, tile, w.codes + block * w.block_bytes + tile.offset,
               w.codebook + w.book_at(block, tile) * w.entries * w.dimension, panel);
        const int32_t* offsets = w.offsets + (block * tile_count + index) * kCodeRows;
        const float* scales = w.scales + (block * w.groups + tile.group) * kCodeRows;
        int64_t at = 0;
        for (; at + Isa::kTokens <= count; at += Isa::kTokens) {
          multiply_tokens<Isa::kTokens>(w, tile, panel, chunk + at * w.token_bytes(), offsets,
                                        scales, sums + at * kCodeRows);
        }
        for (; at < count; ++at) {
          multiply_tokens<1>(w, tile, panel, chunk + at * w.token_bytes(), offsets, scales,
                             sums + at * kCodeRows);
        }
      }
      const int64_t rows = least(kCodeRows, end - row);
      for (int64_t token = 0; token < count; ++token) {
        const float scale = scale_of(w, chunk + token * w.token_bytes());
        float* to = y + (first + token) * stride + row;
        for (int64_t lane = 0; lane < rows; ++lane)
          to[lane] = sums[token * kCodeRows + lane] * scale;
      }
    }
  }
}

// The panel as float32 [column][64 rows], books added.
void widen(const CodeMatrix& w, const CodeTile& tile, const int8_t* panel, float* wide) {
  const int64_t quads = tile.quads();
  for (int64_t quad = 0; quad < quads; ++quad) {
    for (int64_t inner = 0; inner < least(4, tile.columns - quad * 4); ++inner) {
      float* to = wide + (quad * 4 + inner) * kCodeRows;
      int32_t whole[kCodeRows] = {};
      for (int64_t book = 0; book < w.books; ++book) {
        const int8_t* from = panel + (book * quads + quad) * kCodeRows * 4 + inner;
        for (int64_t row = 0; row < kCodeRows; ++row) whole[row] += from[row * 4];
      }
      for (int64_t row = 0; row < kCodeRows; ++row) to[row] = static_cast<float>(whole[row]);
    }
  }
}

template <int kCount>
void float_tokens(const CodeMatrix& w, const CodeTile& tile, const float* wide, const float* a,
                  const float* scales, float* sums) {
  constexpr int kLanes = sizeof(Vector) / sizeof(float), kVectors = kCodeRows / kLanes;
  // A part of the rows at a time, so that the sums stay in registers.
  constexpr int kPart = kVectors < 4 ? kVectors : 4;
  for (int part = 0; part < kVectors; part += kPart) {
    Vector sum[kCount][kPart];
    for (auto& each : sum) {
      for (Vector& one : each) one = Vector{};
    }
    for (int64_t column = 0; column < tile.columns; ++column) {
      Vector weight[kPart];
      std::memcpy(weight, wide + column * kCodeRows + part * kLanes, sizeof(weight));
      for (int token = 0; token < kCount; ++token) {
        const Vector value = a[token * w.columns + tile.column + column] + Vector{};
        for (int one = 0; one < kPart; ++one) {
          sum[token][one] = Isa::madd(value, weight[one], sum[token][one]);
        }
      }
    }
    for (int token = 0; token < kCount; ++token) {
      float* to = sums + token * kCodeRows + part * kLanes;
      float found[kPart * kLanes];
      std::memcpy(found, sum[token], sizeof(found));
      for (int lane = 0; lane < kPart * kLanes; ++lane) {
        to[lane] += found[lane] * scales[part * kLanes + lane];
      }
    }
  }
}

void multiply_float(const CodeMatrix& w, const float* a, int64_t tokens, float* y, int64_t stride,
                    int64_t begin, int64_t end) {
  constexpr int kTokens = 4;
  alignas(64) int8_t panel[kPanel];
  alignas(64) float wide[kMostColumns * kCodeRows];
  alignas(64) float sums[kChunk * kCodeRows];
  for (int64_t first = 0; first < tokens; first += kChunk) {
    const int64_t count = least(kChunk, tokens - first);
    for (int64_t row = begin; row < end; row += kCodeRows) {
      const int64_t block = row / kCodeRows;
      std::memset(sums, 0, static_cast<size_t>(count * kCodeRows) * sizeof(float));
      for (const CodeTile& tile : w.tiles) {
        decode(w, tile, w.codes + block * w.block_bytes + tile.offset,
               w.codebook + w.book_at(block, tile) * w.entries * w.dimension, panel);
        widen(w, tile, panel, wide);
        const float* scales = w.scales + (block * w.groups + tile.group) * kCodeRows;
        int64_t at = 0;
        for (; at + kTokens <= count; at += kTokens) {
          float_tokens<kTokens>(w, tile, wide, a + (first + at) * w.columns, scales,
                                sums + at * kCodeRows);
        }
        for (; at < count; ++at) {
          float_tokens<1>(w, tile, wide, a + (first + at) * w.columns, scales,
                          sums + at * kCodeRows);
        }
      }
      const int64_t rows = least(kCodeRows, end - row);
      for (int64_t token = 0; token < count; ++token) {
        std::memcpy(y + (first + token) * stride + row, sums + token * kCodeRows,
                    static_cast<size_t>(rows) * sizeof(float));
      }
    }
  }
}

}  // namespace
