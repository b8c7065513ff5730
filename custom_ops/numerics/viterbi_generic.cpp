// The baseline of the architecture: loops over lanes that the compiler may make vectors of.
#include <algorithm>

#include "viterbi_kernels.h"

namespace {

struct Wide {
  struct Vector {
    uint16_t lane[32];
  };
  template <class Each>
  static Vector each(const Each& value) {
    Vector out;
    for (int lane = 0; lane < 32; ++lane) out.lane[lane] = value(lane);
    return out;
  }
  static int clipped(int value) { return std::min(32767, std::max(-32768, value)); }
  static Vector load(const void* from) {
    const uint16_t* at = static_cast<const uint16_t*>(from);
    return each([&](int lane) { return at[lane]; });
  }
  static void store(uint16_t* to, const Vector& value) {
    std::copy(value.lane, value.lane + 32, to);
  }
  static Vector all(uint16_t value) {
    return each([&](int) { return value; });
  }
  static Vector min(const Vector& a, const Vector& b) {
    return each([&](int lane) { return std::min(a.lane[lane], b.lane[lane]); });
  }
  static uint32_t less(const Vector& a, const Vector& b) {
    uint32_t mask = 0;
    for (int lane = 0; lane < 32; ++lane) mask |= uint32_t{a.lane[lane] < b.lane[lane]} << lane;
    return mask;
  }
  static Vector add(const Vector& a, const Vector& b) {
    return each([&](int lane) {
      return static_cast<uint16_t>(std::min(0xffff, int{a.lane[lane]} + b.lane[lane]));
    });
  }
  static Vector subtract(const Vector& a, const Vector& b) {
    return each([&](int lane) {
      return static_cast<uint16_t>(std::max(0, int{a.lane[lane]} - b.lane[lane]));
    });
  }
  template <int kDoublings>
  static Vector square(const Vector& value, const Vector& target) {
    return each([&](int lane) {
      int apart = int{static_cast<int16_t>(value.lane[lane])} -
                  int{static_cast<int16_t>(target.lane[lane])};
      apart = clipped(apart);
      for (int time = 0; time < kDoublings; ++time) apart = clipped(2 * apart);
      return static_cast<uint16_t>((apart * apart + 0x4000) >> 15);
    });
  }
  // Signed numbers: saturating sums and differences, and a b / 2^15.
  static int at(const Vector& of, int lane) { return static_cast<int16_t>(of.lane[lane]); }
  static Vector add_signed(const Vector& a, const Vector& b) {
    return each(
        [&](int lane) { return static_cast<uint16_t>(clipped(at(a, lane) + at(b, lane))); });
  }
  static Vector subtract_signed(const Vector& a, const Vector& b) {
    return each(
        [&](int lane) { return static_cast<uint16_t>(clipped(at(a, lane) - at(b, lane))); });
  }
  static Vector multiply(const Vector& a, const Vector& b) {
    return each([&](int lane) {
      return static_cast<uint16_t>((at(a, lane) * at(b, lane) + 0x4000) >> 15);
    });
  }
  // 32 numbers of 8 bits.
  struct Bytes {
    uint8_t lane[32];
  };
  template <class Each>
  static Bytes each_byte(const Each& value) {
    Bytes out;
    for (int lane = 0; lane < 32; ++lane) out.lane[lane] = static_cast<uint8_t>(value(lane));
    return out;
  }
  static Bytes load_bytes(const uint8_t* from) {
    return each_byte([&](int lane) { return from[lane]; });
  }
  static void store_bytes(uint8_t* to, const Bytes& value) {
    std::copy(value.lane, value.lane + 32, to);
  }
  static Bytes all_bytes(uint8_t value) {
    return each_byte([&](int) { return value; });
  }
  static Bytes add_bytes(const Bytes& a, const Bytes& b) {
    return each_byte([&](int lane) { return a.lane[lane] + b.lane[lane]; });
  }
  static Bytes subtract_bytes(const Bytes& a, const Bytes& b) {
    return each_byte([&](int lane) { return a.lane[lane] - b.lane[lane]; });
  }
  static Bytes select(uint32_t mask, const Bytes& yes, const Bytes& no) {
    return each_byte(
        [&](int lane) { return (mask >> lane & 1) != 0 ? yes.lane[lane] : no.lane[lane]; });
  }
  // Signed bytes times a number.
  static Vector times(const Bytes& value, int16_t number) {
    return each([&](int lane) {
      return static_cast<uint16_t>(static_cast<int8_t>(value.lane[lane]) * number);
    });
  }
  static uint16_t lowest(const Vector& value) {
    return *std::min_element(value.lane, value.lane + 32);
  }
  // Every byte 2^bits times over, 32 of them at a time.
  template <int kBits>
  static Bytes spread_bytes(const uint8_t* lanes, int part) {
    return each_byte([&](int lane) { return lanes[(32 * part + lane) >> kBits]; });
  }
  // Every lane 2^bits times over, 32 of them at a time.
  struct Spread {
    Vector all;
    Spread() = default;
    explicit Spread(const Vector& value) : all(value) {}
    template <int kBits>
    Vector part(int part) const {
      return each([&](int lane) { return all.lane[(32 * part + lane) >> kBits]; });
    }
  };
};

}  // namespace

#define ONNXQ_ISA "generic"
#include "viterbi_source.h"

const onnxq::ViterbiKernels* onnxq::viterbi_kernels_generic() { return &kViterbiKernels; }

const onnxq::ViterbiKernels& onnxq::viterbi_kernels() {
  static const ViterbiKernels* best = [] {
    if (const ViterbiKernels* kernels = viterbi_kernels_avx512()) return kernels;
    if (const ViterbiKernels* kernels = viterbi_kernels_avx2()) return kernels;
    return viterbi_kernels_generic();
  }();
  return *best;
}
