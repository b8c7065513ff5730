// Source of every tile_*.cpp, which each give it ONNXQ_ISA and are its only readers. No standard
// library templates here: a template compiled for AVX-512 could be the copy that the linker keeps
// for everyone.

#include <cstring>

#include "tile.h"

namespace onnxq {
namespace {

// 1.5 * 2^23: adding it to |x| < 2^22 rounds to the nearest whole number, ties to even, and leaves
// that number in the low bits.
constexpr float kRounder = 12582912.0f;

inline float clamp(float value, float low, float high) {
  value = value < low ? low : value;
  return value > high ? high : value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline float round_to_half(float value) {
  const uint32_t sign = bits_of(value) & 0x80000000u;
  uint32_t magnitude = bits_of(value) & 0x7fffffffu;
  if (magnitude >= 0x477ff000u) {  // 65520 and up
    magnitude = 0x7f800000u;
  } else if (magnitude >= 0x38800000u) {  // 2^-14 and up: normal, keep 10 fraction bits
    magnitude += 0xfffu + ((magnitude >> 13) & 1u);
    magnitude &= ~0x1fffu;
  } else {  // multiples of 2^-24, which is the spacing of float32 just above 0.75
    magnitude = bits_of((float_of(magnitude) + 0.75f) - 0.75f);
  }
  return float_of(sign | magnitude);
}

void range(const float* tile, int columns, float* low, float* high, int32_t* top) {
  for (int column = 0; column < columns; ++column) {
    const float* row = tile + static_cast<ptrdiff_t>(column) * kLanes;
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = row[lane];
      const int32_t magnitude = static_cast<int32_t>(bits_of(value) & 0x7fffffffu);
      low[lane] = value < low[lane] ? value : low[lane];
      high[lane] = value > high[lane] ? value : high[lane];
      top[lane] = magnitude > top[lane] ? magnitude : top[lane];
    }
  }
}

void settle(const float* base, float factor, Levels levels, float* scale) {
  const float tiny = levels.half_scales ? 0x1p-24f : 0x1p-126f;
  for (int lane = 0; lane < kLanes; ++lane) scale[lane] = base[lane] * factor;
  if (levels.half_scales) {
    for (int lane = 0; lane < kLanes; ++lane) scale[lane] = round_to_half(scale[lane]);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const float value = scale[lane];
    const float magnitude = value < 0.0f ? -value : value;
    const float floored = magnitude < tiny ? tiny : value;
    scale[lane] = base[lane] == 0.0f ? 1.0f : floored;
  }
}

void plain_scale(const float* low, const float* high, Levels levels, float* scale, float* zero) {
  if (!levels.symmetric) {
    const float steps = static_cast<float>(levels.high());
    for (int lane = 0; lane < kLanes; ++lane) scale[lane] = high[lane] / steps - low[lane] / steps;
    settle(scale, 1.0f, levels, zero);
    for (int lane = 0; lane < kLanes; ++lane) {
      zero[lane] = (clamp(-low[lane] / zero[lane], 0.0f, steps) + kRounder) - kRounder;
    }
    return;
  }
  const bool any_sign = levels.bits < 8 && !levels.positive;
  const float reach = static_cast<float>(levels.bits == 8 ? 127 : 1 << (levels.bits - 1));
  const float divisor = any_sign ? -reach : reach;
  for (int lane = 0; lane < kLanes; ++lane) {
    const float extreme = high[lane] > -low[lane] ? high[lane] : low[lane];
    const float magnitude = extreme < 0.0f ? -extreme : extreme;
    scale[lane] = (any_sign ? extreme : magnitude) / divisor;
    zero[lane] = 0.0f;
  }
}

void add_error(const float* tile, int columns, const float* scale, const float* zero, Levels levels,
               float* error) {
  const float lowest = static_cast<float>(levels.low());
  const float highest = static_cast<float>(levels.high());
  // Vector registers hold a quarter of the lanes with their scales, limits and sums.
  constexpr int kPart = kLanes / 4;
  for (int part = 0; part < kLanes; part += kPart) {
    float step[kPart], low[kPart], high[kPart], sum[kPart];
    for (int lane = 0; lane < kPart; ++lane) {
      step[lane] = scale[part + lane];
      low[lane] = lowest - zero[part + lane];
      high[lane] = highest - zero[part + lane];
      sum[lane] = error[part + lane];
    }
    for (int column = 0; column < columns; ++column) {
      const float* row = tile + static_cast<ptrdiff_t>(column) * kLanes + part;
      for (int lane = 0; lane < kPart; ++lane) {
        const float steps =
            (clamp(row[lane] / step[lane], low[lane], high[lane]) + kRounder) - kRounder;
        const float gap = row[lane] - steps * step[lane];
        sum[lane] += gap * gap;
      }
    }
    for (int lane = 0; lane < kPart; ++lane) error[part + lane] = sum[lane];
  }
}

void quantize(const float* tile, int columns, const float* scale, const float* zero, Levels levels,
              int offset, uint8_t* codes, float* noise, float* signal) {
  float low[kLanes], high[kLanes];
  uint32_t shift[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    low[lane] = static_cast<float>(levels.low()) - zero[lane];
    high[lane] = static_cast<float>(levels.high()) - zero[lane];
    shift[lane] = static_cast<uint32_t>(offset + static_cast<int>(zero[lane])) - bits_of(kRounder);
  }
  for (int column = 0; column < columns; ++column) {
    const float* row = tile + static_cast<ptrdiff_t>(column) * kLanes;
    uint8_t* out = codes + static_cast<ptrdiff_t>(column) * kLanes;
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = row[lane];
      const float rounded = clamp(value / scale[lane], low[lane], high[lane]) + kRounder;
      const float gap = value - (rounded - kRounder) * scale[lane];
      noise[lane] += gap * gap;
      signal[lane] += value * value;
      out[lane] = static_cast<uint8_t>(bits_of(rounded) + shift[lane]);
    }
  }
}

void pack(const uint8_t* codes, int columns, int bits, uint8_t* packed) {
  const int per_byte = 8 / bits;
  for (int row = 0; row < columns / per_byte; ++row) {
    const uint8_t* in = codes + static_cast<ptrdiff_t>(row) * per_byte * kLanes;
    uint8_t* out = packed + static_cast<ptrdiff_t>(row) * kLanes;
    if (bits == 4) {
      for (int lane = 0; lane < kLanes; ++lane) {
        out[lane] = static_cast<uint8_t>(in[lane] | in[kLanes + lane] << 4);
      }
    } else {  // 2 bits
      for (int lane = 0; lane < kLanes; ++lane) {
        out[lane] = static_cast<uint8_t>(in[lane] | in[kLanes + lane] << 2 |
                                         in[2 * kLanes + lane] << 4 | in[3 * kLanes + lane] << 6);
      }
    }
  }
}

// Transposes 8 x 8 bytes held in eight words, by swapping ever larger off-diagonal blocks
// (Warren, Hacker's Delight, section 7-3).
inline void transpose8(uint64_t* word) {
  const uint64_t masks[3] = {0x00ff00ff00ff00ffull, 0x0000ffff0000ffffull, 0x00000000ffffffffull};
  for (int level = 0; level < 3; ++level) {
    const int step = 1 << level, shift = 8 << level;
    for (int index = 0; index < 8; ++index) {
      if (index & step) continue;
      const uint64_t above = word[index], below = word[index + step];
      word[index] = (above & masks[level]) | (below & masks[level]) << shift;
      word[index + step] = (above >> shift & masks[level]) | (below & ~masks[level]);
    }
  }
}

void scatter(const uint8_t* bytes, int rows, int lanes, uint8_t* out, ptrdiff_t stride) {
  const int whole_rows = rows & ~7, whole_lanes = lanes & ~7;
  for (int lane = 0; lane < whole_lanes; lane += 8) {
    for (int row = 0; row < whole_rows; row += 8) {
      uint64_t word[8];
      for (int index = 0; index < 8; ++index) {
        memcpy(&word[index], bytes + (row + index) * kLanes + lane, 8);
      }
      transpose8(word);
      for (int index = 0; index < 8; ++index) {
        memcpy(out + (lane + index) * stride + row, &word[index], 8);
      }
    }
  }
  for (int lane = 0; lane < lanes; ++lane) {
    for (int row = lane < whole_lanes ? whole_rows : 0; row < rows; ++row) {
      out[lane * stride + row] = bytes[row * kLanes + lane];
    }
  }
}

void gather(const float* source, ptrdiff_t stride, int columns, int lanes, float* tile) {
  if (lanes < kLanes) memset(tile, 0, sizeof(float) * kLanes * static_cast<size_t>(columns));
  constexpr int kBlock = 16;  // one cache line of every lane
  for (int begin = 0; begin < columns; begin += kBlock) {
    const int end = begin + kBlock < columns ? begin + kBlock : columns;
    for (int lane = 0; lane < lanes; ++lane) {
      const float* row = source + lane * stride;
      for (int column = begin; column < end; ++column) tile[column * kLanes + lane] = row[column];
    }
  }
}

// Multiplies by 1 / scale, which may turn a value near a tie to the other of two codes: that
// changes what it costs no more than rounding does. A division would take most of the time.
template <bool kRobust>
void add_cost_of(const float* tile, int columns, const float* importance, const float* scale,
                 const float* zero, Levels levels, float* cost) {
  const float lowest = static_cast<float>(levels.low());
  const float highest = static_cast<float>(levels.high());
  constexpr int kPart = kLanes / 4;
  for (int part = 0; part < kLanes; part += kPart) {
    float step[kPart], inverse[kPart], low[kPart], high[kPart], sum[kPart];
    for (int lane = 0; lane < kPart; ++lane) {
      step[lane] = scale[part + lane];
      inverse[lane] = 1.0f / step[lane];
      low[lane] = lowest - zero[part + lane];
      high[lane] = highest - zero[part + lane];
      sum[lane] = cost[part + lane];
    }
    for (int column = 0; column < columns; ++column) {
      const float* row = tile + static_cast<ptrdiff_t>(column) * kLanes + part;
      const float weight = importance[column];
      for (int lane = 0; lane < kPart; ++lane) {
        const float steps =
            (clamp(row[lane] * inverse[lane], low[lane], high[lane]) + kRounder) - kRounder;
        const float gap = row[lane] - steps * step[lane];
        if (kRobust) {
          const float root = __builtin_sqrtf(gap < 0.0f ? -gap : gap);
          sum[lane] += root * __builtin_sqrtf(root) * weight;
        } else {
          sum[lane] += gap * gap * weight;
        }
      }
    }
    for (int lane = 0; lane < kPart; ++lane) cost[part + lane] = sum[lane];
  }
}

void add_cost(const float* tile, int columns, const float* importance, const float* scale,
              const float* zero, Levels levels, bool robust, float* cost) {
  if (robust) {
    add_cost_of<true>(tile, columns, importance, scale, zero, levels, cost);
  } else {
    add_cost_of<false>(tile, columns, importance, scale, zero, levels, cost);
  }
}

template <bool kShrunk>
void add_moments_of(const float* tile, int columns, const float* importance, const float* scale,
                    const float* zero, Levels levels, float threshold, float* shift, float* cross,
                    float* square) {
  const float lowest = static_cast<float>(levels.low());
  const float highest = static_cast<float>(levels.high());
  constexpr int kPart = kLanes / 4;
  for (int part = 0; part < kLanes; part += kPart) {
    float first[kPart], second[kPart], third[kPart];
    for (int lane = 0; lane < kPart; ++lane) {
      first[lane] = shift[part + lane];
      second[lane] = cross[part + lane];
      third[lane] = square[part + lane];
    }
    for (int column = 0; column < columns; ++column) {
      const float* row = tile + static_cast<ptrdiff_t>(column) * kLanes + part;
      const float weight = importance[column];
      for (int lane = 0; lane < kPart; ++lane) {
        const float middle = zero[part + lane];
        float target = row[lane] / scale[part + lane];
        const float code = (clamp(target + middle, lowest, highest) + kRounder) - kRounder;
        const float steps = code - middle;
        if (kShrunk) {
          const float error = target - steps;
          const float size = __builtin_fabsf(error);  // of -0 too, whose quotient is -infinite
          // threshold * size^(-1/4); infinite where the error is 0, and nothing is left of it.
          const float cut = threshold / __builtin_sqrtf(__builtin_sqrtf(size));
          const float kept = size > cut ? size - cut : 0.0f;
          target -= error < 0.0f ? -kept : kept;
        }
        first[lane] += weight * (code - target);
        second[lane] += weight * (steps * target);
        third[lane] += weight * (steps * steps);
      }
    }
    for (int lane = 0; lane < kPart; ++lane) {
      shift[part + lane] = first[lane];
      cross[part + lane] = second[lane];
      square[part + lane] = third[lane];
    }
  }
}

void add_moments(const float* tile, int columns, const float* importance, const float* scale,
                 const float* zero, Levels levels, float threshold, float* shift, float* cross,
                 float* square) {
  if (threshold > 0.0f) {
    add_moments_of<true>(tile, columns, importance, scale, zero, levels, threshold, shift, cross,
                         square);
  } else {
    add_moments_of<false>(tile, columns, importance, scale, zero, levels, 0.0f, shift, cross,
                          square);
  }
}

constexpr TileKernels kKernels = {
    ONNXQ_ISA, range,   plain_scale, settle,   add_error,   quantize,
    pack,      scatter, gather,      add_cost, add_moments,
};

}  // namespace
}  // namespace onnxq
