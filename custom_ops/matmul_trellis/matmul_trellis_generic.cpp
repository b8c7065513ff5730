// The baseline of the architecture: loops over lanes that the compiler may make vectors of.
#include <cstring>

#include "../cpu/cpu.h"
#include "trellis_codes.h"

namespace {

struct Vector {
  static constexpr int kTile = 4;
  static constexpr int32_t kByteBias = 0;
  struct Words {
    uint32_t lane[16];
  };
  struct Floats {
    float lane[16];
  };
  // Not inlined: every step of every code would be a loop of its own, minutes to compile.
  template <class Result, class Work>
  [[gnu::noinline]] static Result each(const Work& work) {
    Result result;
    for (int lane = 0; lane < 16; ++lane) result.lane[lane] = work(lane);
    return result;
  }
  static int32_t low(uint32_t word) { return static_cast<int16_t>(word); }
  static int32_t high(uint32_t word) { return static_cast<int32_t>(word) >> 16; }
  static uint32_t joined(uint32_t first, uint32_t second) {
    return (first & 0xffff) | second << 16;
  }

  static Words load(const uint8_t* from) {
    Words words;
    std::memcpy(words.lane, from, sizeof(words.lane));
    return words;
  }
  static Words load16(const uint8_t* from) {
    return each<Words>([&](int lane) { return from[2 * lane] | from[2 * lane + 1] << 8; });
  }
  static Words load8(const uint8_t* from) {
    return each<Words>([&](int lane) { return from[lane]; });
  }
  static void store(uint8_t* to, const Words& words) {
    std::memcpy(to, words.lane, sizeof(words.lane));
  }
  static void prefetch(const uint8_t*) {}

  static Words all(int32_t value) {
    return each<Words>([&](int) { return value; });
  }
  static Words all16(int16_t value) {
    return each<Words>([&](int) { return joined(value, value); });
  }
  static Words next(const Words& a) {
    return each<Words>([&](int lane) { return a.lane[(lane + 1) % 16]; });
  }
  template <int kBits>
  static Words shift_right(const Words& a) {
    return each<Words>([&](int lane) { return a.lane[lane] >> kBits; });
  }
  template <int kBits>
  static Words shift_left(const Words& a) {
    return each<Words>([&](int lane) { return a.lane[lane] << kBits; });
  }
  template <int kBits>
  static Words join(const Words& first, const Words& second) {
    return either(shift_right<kBits>(first), shift_left<32 - kBits>(second));
  }
  static Words either(const Words& a, const Words& b) {
    return each<Words>([&](int lane) { return a.lane[lane] | b.lane[lane]; });
  }
  static Words both(const Words& a, const Words& b) {
    return each<Words>([&](int lane) { return a.lane[lane] & b.lane[lane]; });
  }
  static Words add(const Words& a, const Words& b) {
    return each<Words>([&](int lane) { return a.lane[lane] + b.lane[lane]; });
  }
  static Words times(const Words& a, uint32_t factor) {
    return each<Words>([&](int lane) { return a.lane[lane] * factor; });
  }
  static Words choose(const Words& a, const Words& mask, uint32_t ones) {
    return each<Words>([&](int lane) { return (a.lane[lane] & mask.lane[lane]) | ones; });
  }
  static Words pair(const Words& first, const Words& second) {
    return each<Words>([&](int lane) { return joined(first.lane[lane], second.lane[lane]); });
  }
  static Words low_half(const Words& a) {
    return each<Words>([&](int lane) { return low(a.lane[lane]); });
  }
  static Words high_half(const Words& a) {
    return each<Words>([&](int lane) { return high(a.lane[lane]); });
  }
  // A float16 number as a whole one of 2^-13.
  static int32_t whole(uint32_t mixed) {
    const uint32_t bits = (mixed & onnxq::kThreeInstMask) ^ onnxq::kThreeInstFlip;
    const int32_t size = static_cast<int32_t>(((bits & 0x3ff) | 0x400) << (bits >> 10 & 3));
    return (bits & 0x8000) != 0 ? -size : size;
  }
  static Words halves(const Words& a) {
    return each<Words>([&](int lane) {
      return joined(static_cast<uint32_t>(whole(a.lane[lane])),
                    static_cast<uint32_t>(whole(a.lane[lane] >> 16)));
    });
  }
  static Words pair_sums(const Words& a) {
    return each<Words>([&](int lane) { return low(a.lane[lane]) + high(a.lane[lane]); });
  }
  static Words byte_sums(const Words& a, int32_t added) {
    return each<Words>([&](int lane) {
      const uint32_t word = a.lane[lane];
      return (word & 255) + (word >> 8 & 255) + (word >> 16 & 255) + (word >> 24) +
             static_cast<uint32_t>(added);
    });
  }
  static int32_t spread_byte(int8_t q) { return q; }
  static Words add_bytes(const Words& sums, const Words& bytes, const Words& q) {
    const Words whole = byte_sums(bytes, 0);
    return each<Words>([&](int lane) {
      return sums.lane[lane] +
             static_cast<uint32_t>(static_cast<int32_t>(whole.lane[lane]) * low(q.lane[lane]));
    });
  }
  static Words add_pairs(const Words& sums, const Words& pairs, const Words& q) {
    return each<Words>([&](int lane) {
      const uint32_t a = pairs.lane[lane], b = q.lane[lane];
      return sums.lane[lane] + static_cast<uint32_t>(low(a) * low(b)) +
             static_cast<uint32_t>(high(a) * high(b));
    });
  }
  static Words add_fours(const Words& sums, const Words& bytes, const Words& q) {
    return each<Words>([&](int lane) {
      uint32_t sum = sums.lane[lane];
      for (int at = 0; at < 32; at += 8) {
        const int32_t weight = static_cast<int8_t>(bytes.lane[lane] >> at);
        sum += static_cast<uint32_t>(weight * static_cast<int8_t>(q.lane[lane] >> at));
      }
      return sum;
    });
  }
  template <int kBits>
  static Words two(const Words& a) {
    return each<Words>([&](int lane) { return joined(a.lane[lane], a.lane[lane] >> kBits); });
  }
  static Words upper(const Words& states, uint32_t factor) {
    return each<Words>([&](int lane) {
      const uint32_t state = states.lane[lane];
      return joined((state & 0xffff) * factor >> 16, (state >> 16) * factor >> 16);
    });
  }
  template <int kAt>
  static Words byte(const Words& a) {
    return each<Words>(
        [&](int lane) { return int32_t{static_cast<int8_t>(a.lane[lane] >> 8 * kAt)}; });
  }
  static void widen(const int8_t* from, int64_t count, int8_t* to) {
    for (int64_t at = 0; at < count; ++at) {
      const int16_t value = from[at];
      std::memcpy(to + 2 * at, &value, sizeof(value));
    }
  }

  struct Table {
    const int8_t* magnitudes;
    explicit Table(const int8_t* given) : magnitudes(given) {}
    Words look_up(const Words& a) const {
      return each<Words>([&](int lane) {
        uint32_t word = 0;
        for (int at = 0; at < 32; at += 8) {
          const uint32_t place = a.lane[lane] >> at;
          const int value = (place & 64) != 0 ? -magnitudes[place & 63] : magnitudes[place & 63];
          word |= uint32_t{static_cast<uint8_t>(value)} << at;
        }
        return word;
      });
    }
  };

  static Floats no_floats() { return all_floats(0); }
  static Floats all_floats(float value) {
    return each<Floats>([&](int) { return value; });
  }
  static Floats load_floats(const float* from) {
    return each<Floats>([&](int lane) { return from[lane]; });
  }
  static void store_floats(float* to, const Floats& a) { std::memcpy(to, a.lane, sizeof(a.lane)); }
  static Floats floats(const Words& a) {
    return each<Floats>(
        [&](int lane) { return static_cast<float>(static_cast<int32_t>(a.lane[lane])); });
  }
  static Floats add_floats(const Floats& a, const Floats& b) {
    return each<Floats>([&](int lane) { return a.lane[lane] + b.lane[lane]; });
  }
  static Floats multiply(const Floats& a, const Floats& b) {
    return each<Floats>([&](int lane) { return a.lane[lane] * b.lane[lane]; });
  }
  static Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
    return each<Floats>([&](int lane) { return a.lane[lane] * b.lane[lane] + c.lane[lane]; });
  }
};

}  // namespace

#include "matmul_trellis_source.h"

namespace onnxq {

const TrellisKernels& trellis_kernels_generic() {
  static constexpr TrellisKernels kernels = {"generic", multiply, multiply_float};
  return kernels;
}

const TrellisKernels& trellis_kernels() {
  const TrellisKernels* kernels = nullptr;
  switch (instructions()) {
    case Instructions::kAmx:
    case Instructions::kVnni:
      kernels = trellis_kernels_vnni();
      break;
    case Instructions::kAvx512:
      kernels = trellis_kernels_avx512();
      break;
    case Instructions::kAvx2:
      kernels = trellis_kernels_avx2();
      break;
    case Instructions::kGeneric:
      break;
  }
  return kernels != nullptr ? *kernels : trellis_kernels_generic();
}

}  // namespace onnxq
