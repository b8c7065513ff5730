// What the codes of MatMulE8P stand for, on a GPU and on the CPU. The numbering of points is told
// in onnxq/numerics/e8p.py.
#pragma once

#include "../matmul/device.h"
#include "matmul_e8p_cuda.h"

namespace onnxq::cuda {

constexpr int bits_of(unsigned mask) {
  int count = 0;
  for (; mask != 0; mask &= mask - 1) ++count;
  return count;
}

// Of every pattern, in the bits of a word: for each of eight weights 0, 1 or 2 when its magnitude
// is 1/2, 3/2 or 5/2 (two bits each); whether the number of minus signs is odd (bit 16); whether it
// is long (bit 17). Of every point of the one-bit book, eight nibbles: the weights in halves
// plus 4.
struct E8pBook {
  uint32_t pattern[256], point[256];
};

constexpr bool is_pattern(unsigned mask) {
  if (bits_of(mask) != 5) return bits_of(mask) < 5;
  const unsigned halves = ~mask & 0xff;
  return bits_of(halves >> 4) % 2 == 0 || halves == 0x8c;
}

constexpr uint32_t pattern_word(unsigned threes, unsigned fives) {
  uint32_t word = 0;
  int square = 0;
  for (int place = 0; place < kOctet; ++place) {
    const unsigned size = (threes >> place & 1) + (fives >> place & 1);
    word |= size << (2 * place);
    square += static_cast<int>((2 * size + 1) * (2 * size + 1));
  }
  const unsigned odd = static_cast<unsigned>(bits_of(threes & ~fives)) % 2;
  return word | odd << 16 | (square >= 40 ? 1u : 0u) << 17;
}

constexpr E8pBook make_e8p_book() {
  E8pBook book{};
  unsigned next = 0;
  for (unsigned five = 0; five < 8; ++five) {
    for (unsigned three = 0; three < 8; ++three) {
      book.pattern[next++] = pattern_word(1u << five | 1u << three, 1u << five);
    }
  }
  for (unsigned mask = 0; mask < 256; ++mask) {
    if (is_pattern(mask)) book.pattern[next++] = pattern_word(mask, 0);
  }
  const uint32_t zero = 0x44444444u;
  for (unsigned code = 0; code < 128; ++code) {
    const unsigned signs = code | static_cast<unsigned>(bits_of(code)) % 2 << 7;
    for (int place = 0; place < kOctet; ++place) {
      book.point[code] |= (signs >> place & 1 ? 3u : 5u) << (4 * place);
    }
  }
  unsigned code = 128;
  for (int first = 0; first < kOctet; ++first) {
    for (int second = first + 1; second < kOctet; ++second) {
      for (unsigned signs = 0; signs < 4; ++signs) {
        uint32_t word = zero & ~(15u << (4 * first)) & ~(15u << (4 * second));
        word |= (signs & 1 ? 2u : 6u) << (4 * first) | (signs & 2 ? 2u : 6u) << (4 * second);
        book.point[code++] = word;
      }
    }
  }
  book.point[240] = zero;
  for (int place = 0; place < kOctet; ++place) {
    book.point[241 + place] = zero ^ (12u << (4 * place));                // 8: four halves
    if (place < 7) book.point[249 + place] = zero ^ (4u << (4 * place));  // 0: minus four
  }
  return book;
}

#ifdef __CUDACC__
__constant__ const E8pBook kDeviceE8pBook = make_e8p_book();
#endif
constexpr E8pBook kE8pBook = make_e8p_book();

// kBits: a weight, 2, 3 or 4.
template <int kBits>
struct E8pWeight : onnxq_e8p {
  using Shared = E8pBook;
  int64_t columns;

  ONNXQ_DEVICE E8pWeight(const onnxq_e8p& stored, const onnxq_matmul& call)
      : onnxq_e8p(stored), columns(call.columns) {}

  ONNXQ_DEVICE void load(Shared& shared, int thread, int threads) const {
#ifdef __CUDA_ARCH__
    const E8pBook& book = kDeviceE8pBook;
#else
    const E8pBook& book = kE8pBook;
#endif
    for (int at = thread; at < 256; at += threads) {
      shared.pattern[at] = book.pattern[at];
      shared.point[at] = book.point[at];
    }
  }

  // The whole numbers of a code, times `factor` (of long patterns `longer`), added to `sums`.
  ONNXQ_DEVICE void add_point(const Shared& shared, uint32_t code, int factor, int longer,
                              int (&sums)[kOctet]) const {
    const uint32_t pattern = shared.pattern[code >> 8], seven = code & 0x7f;
    const uint32_t signs = seven | ((static_cast<uint32_t>(ones(seven)) ^ pattern >> 16) & 1) << 7;
    const int shift = code & 0x80 ? 1 : -1;
    const int gain = pattern >> 17 & 1 ? longer : factor;
    ONNXQ_UNROLL for (int place = 0; place < kOctet; ++place) {
      const int magnitude = 2 + 4 * static_cast<int>(pattern >> (2 * place) & 3);
      sums[place] += gain * ((signs >> place & 1 ? -magnitude : magnitude) + shift);
    }
  }

  ONNXQ_DEVICE float decode(const Shared& shared, int64_t row, int64_t column,
                            float (&w)[kOctet]) const {
    const uint8_t* from = codes + (row * columns + column) / 8 * kBits;
    const auto byte = [&](int i) { return static_cast<uint32_t>(read(from + i)); };
    int sums[kOctet] = {};
    add_point(shared, byte(0) | byte(1) << 8, kBits == 3 ? 1 : 7,
              kBits == 2   ? 8
              : kBits == 3 ? 1
                           : 7,
              sums);
    if (kBits == 3) {
      const uint32_t point = shared.point[byte(kBits - 1)];
      ONNXQ_UNROLL for (int k = 0; k < kOctet; ++k) sums[k] +=
          static_cast<int>(point >> (4 * k) & 15) - 4;
    } else if (kBits == 4) {
      add_point(shared, byte(kBits - 2) | byte(kBits - 1) << 8, 2, 2, sums);
    }
    ONNXQ_UNROLL for (int k = 0; k < kOctet; ++k) w[k] = static_cast<float>(sums[k]);
    return half_value(read(scales + (scale_rows == 1 ? 0 : row))) *
           (kBits == 3 ? 1.0f / 4 : 1.0f / 28);
  }
};

}  // namespace onnxq::cuda
