// Source of every hadamard_*.cpp, which each give it ONNXQ_ISA, the vector types `Wide` and
// `Single` and the conversions `widen` and `narrow`, and are its only readers. No standard library
// templates here: a template compiled for AVX-512 could be the copy that the linker keeps for
// everyone.
//
// A vector type has kWidth lanes, kRadix registers to transform among themselves, `within`, which
// transforms the lanes of one register, and kColumns registers of each of kOutputs sums for the
// factor.

#include "hadamard.h"

namespace onnxq {
namespace {

// v := v S over kRadix registers, distances kStep, 2 kStep ... kRadix / 2.
template <class V, int kRadix, int kStep = 1>
[[gnu::always_inline]] inline void butterflies(typename V::Vector* v) {
  if constexpr (kStep < kRadix) {
#pragma GCC unroll 16
    for (int pair = 0; pair < kRadix / 2; ++pair) {
      const int low = (pair / kStep) * 2 * kStep + pair % kStep, high = low + kStep;
      const typename V::Vector sum = V::add(v[low], v[high]);
      v[high] = V::subtract(v[low], v[high]);
      v[low] = sum;
    }
    butterflies<V, kRadix, 2 * kStep>(v);
  }
}

// `count` consecutive blocks of kRadix registers, each transformed on its own and scaled.
template <class V, int kRadix>
void blocks(const float* x, float* y, int64_t count, float scale) {
  const typename V::Vector factor = V::all(scale);
  for (int64_t block = 0; block < count; ++block) {
    typename V::Vector v[kRadix];
#pragma GCC unroll 16
    for (int at = 0; at < kRadix; ++at) {
      v[at] = V::within(V::multiply(V::load(x + at * V::kWidth), factor));
    }
    butterflies<V, kRadix>(v);
#pragma GCC unroll 16
    for (int at = 0; at < kRadix; ++at) V::store(y + at * V::kWidth, v[at]);
    x += kRadix * V::kWidth;
    y += kRadix * V::kWidth;
  }
}

// What the next segment will read and write, fetched while this one is worked on in the first
// cache; null when there is no next.
struct Ahead {
  const float* x;
  float* y;
};

// One further pass over `size` floats: distances stride, 2 stride ... kRadix / 2 stride.
template <class V, int kRadix>
void pass(float* y, int64_t size, int64_t stride, Ahead ahead) {
  for (float* group = y; group < y + size; group += kRadix * stride) {
    for (int64_t column = 0; column < stride; column += V::kWidth) {
      if (ahead.x != nullptr) {
        for (int at = 0; at < kRadix * V::kWidth; at += 16) {
          __builtin_prefetch(ahead.x + at, 0);
          __builtin_prefetch(ahead.y + at, 1);
        }
        ahead = {ahead.x + kRadix * V::kWidth, ahead.y + kRadix * V::kWidth};
      }
      typename V::Vector v[kRadix];
#pragma GCC unroll 16
      for (int at = 0; at < kRadix; ++at) v[at] = V::load(group + at * stride + column);
      butterflies<V, kRadix>(v);
#pragma GCC unroll 16
      for (int at = 0; at < kRadix; ++at) V::store(group + at * stride + column, v[at]);
    }
  }
}

template <class V>
void blocks_of(int64_t registers, const float* x, float* y, int64_t count, float scale) {
  switch (registers) {
    case 1:
      return blocks<V, 1>(x, y, count, scale);
    case 2:
      return blocks<V, 2>(x, y, count, scale);
    case 4:
      return blocks<V, 4>(x, y, count, scale);
    case 8:
      return blocks<V, 8>(x, y, count, scale);
    default:
      if constexpr (V::kRadix >= 16) return blocks<V, 16>(x, y, count, scale);
  }
}

template <class V>
void pass_of(int64_t radix, float* y, int64_t size, int64_t stride, Ahead ahead) {
  switch (radix) {
    case 2:
      return pass<V, 2>(y, size, stride, ahead);
    case 4:
      return pass<V, 4>(y, size, stride, ahead);
    case 8:
      return pass<V, 8>(y, size, stride, ahead);
    default:
      if constexpr (V::kRadix >= 16) return pass<V, 16>(y, size, stride, ahead);
  }
}

// `count` consecutive segments of `size` = 2^k floats, each transformed on its own and scaled.
template <class V>
void segments_of(const float* x, float* y, int64_t count, int64_t size, float scale) {
  constexpr int64_t kBlock = V::kRadix * V::kWidth;
  if (size <= kBlock) return blocks_of<V>(size / V::kWidth, x, y, count, scale);
  for (int64_t segment = 0; segment < count; ++segment, x += size, y += size) {
    blocks<V, V::kRadix>(x, y, size / kBlock, scale);
    for (int64_t stride = kBlock; stride < size;) {
      const int64_t left = size / stride, radix = left < V::kRadix ? left : V::kRadix;
      const bool last = stride * radix == size && segment + 1 < count;
      pass_of<V>(radix, y, size, stride, last ? Ahead{x + size, y + size} : Ahead{});
      stride *= radix;
    }
  }
}

void segments(const float* x, float* y, int64_t count, int64_t size, float scale) {
  if (size < Wide::kWidth) {
    segments_of<Single>(x, y, count, size, scale);
  } else {
    segments_of<Wide>(x, y, count, size, scale);
  }
}

// y[b, :] = sum over a of x[a, :] factor[a, b], for kOutputs values of b from `first` and
// kColumns registers of columns.
template <class V, int kOutputs, int kColumns>
[[gnu::always_inline]] inline void mix_part(const float* x, float* y, HadamardSize size,
                                            const float* factor) {
  typename V::Vector sum[kOutputs][kColumns];
  for (int output = 0; output < kOutputs; ++output) {
    for (int part = 0; part < kColumns; ++part) sum[output][part] = V::all(0.0f);
  }
  for (int64_t row = 0; row < size.factor; ++row) {
    typename V::Vector value[kColumns];
    for (int part = 0; part < kColumns; ++part) {
      value[part] = V::load(x + row * size.power + part * V::kWidth);
    }
    for (int output = 0; output < kOutputs; ++output) {
      const typename V::Vector weight = V::all(factor[row * size.factor + output]);
      for (int part = 0; part < kColumns; ++part) {
        sum[output][part] = V::multiply_add(value[part], weight, sum[output][part]);
      }
    }
  }
  for (int output = 0; output < kOutputs; ++output) {
    for (int part = 0; part < kColumns; ++part) {
      V::store(y + output * size.power + part * V::kWidth, sum[output][part]);
    }
  }
}

template <class V, int kColumns>
void mix_columns(const float* x, float* y, HadamardSize size, const float* factor) {
  for (int64_t column = 0; column < size.power; column += kColumns * V::kWidth) {
    int64_t output = 0;
    for (; output + V::kOutputs <= size.factor; output += V::kOutputs) {
      mix_part<V, V::kOutputs, kColumns>(x + column, y + output * size.power + column, size,
                                         factor + output);
    }
    for (; output < size.factor; ++output) {
      mix_part<V, 1, kColumns>(x + column, y + output * size.power + column, size, factor + output);
    }
  }
}

void mix(const float* x, float* y, HadamardSize size, const float* factor) {
  if (size.power >= Wide::kColumns * Wide::kWidth) {
    mix_columns<Wide, Wide::kColumns>(x, y, size, factor);
  } else if (size.power >= Wide::kWidth) {
    mix_columns<Wide, 1>(x, y, size, factor);
  } else {
    mix_columns<Single, 1>(x, y, size, factor);
  }
}

void transform(const float* x, float* y, int64_t rows, HadamardSize size, const float* factor,
               float* scratch) {
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(size.power));
  if (size.factor == 1) return segments(x, y, rows, size.power, scale);
  const int64_t width = size.factor * size.power;
  for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
    segments(x, scratch, size.factor, size.power, scale);
    mix(scratch, y, size, factor);
  }
}

constexpr HadamardKernels kHadamardKernels = {ONNXQ_ISA, transform, widen, narrow};

}  // namespace
}  // namespace onnxq
