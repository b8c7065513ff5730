// The baseline of the architecture (four lanes: SSE2, NEON), and the choice among the others.
#include <cstring>

#include "hadamard.h"
#include "single.h"

namespace {

struct Wide {
  static constexpr int kWidth = 4, kRadix = 8, kOutputs = 4, kColumns = 2;
  using Vector [[gnu::vector_size(16)]] = float;
  static Vector load(const float* from) {
    Vector value;
    memcpy(&value, from, sizeof value);
    return value;
  }
  static void store(float* to, Vector value) { memcpy(to, &value, sizeof value); }
  static Vector all(float value) { return Vector{value, value, value, value}; }
  static Vector add(Vector a, Vector b) { return a + b; }
  static Vector subtract(Vector a, Vector b) { return a - b; }
  static Vector multiply(Vector a, Vector b) { return a * b; }
  static Vector multiply_add(Vector a, Vector b, Vector sum) { return a * b + sum; }
  static Vector within(Vector v) {
    v = v * Vector{1, -1, 1, -1} + __builtin_shufflevector(v, v, 1, 0, 3, 2);
    return v * Vector{1, 1, -1, -1} + __builtin_shufflevector(v, v, 2, 3, 0, 1);
  }
};

uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

void widen(const uint16_t* half, float* single, int64_t count) {
  for (int64_t index = 0; index < count; ++index) {
    const uint32_t sign = (half[index] & 0x8000u) << 16, rest = half[index] & 0x7fffu;
    uint32_t bits = (rest << 13) + 0x38000000u;                  // exponent 15 becomes 127
    if (rest >= 0x7c00u) bits = (rest << 13) + 0x70000000u;      // infinity and NaN
    if (rest > 0x7c00u) bits |= 0x00400000u;                     // NaN is made quiet
    if (rest < 0x0400u) bits = bits_of(float(rest) * 0x1p-24f);  // subnormal
    single[index] = float_of(sign | bits);
  }
}

uint16_t half_of(float value) {
  const uint32_t sign = bits_of(value) >> 16 & 0x8000u;
  uint32_t bits = bits_of(value) & 0x7fffffffu;
  if (bits > 0x7f800000u) {  // NaN stays one, made quiet
    return static_cast<uint16_t>(sign | 0x7e00u | (bits >> 13 & 0x3ffu));
  }
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and up
  if (bits < 0x38800000u) {  // below 2^-14: multiples of 2^-24, the spacing of float32 near 0.75
    const uint32_t steps = bits_of(float_of(bits) + 0.75f) - bits_of(0.75f);
    return static_cast<uint16_t>(sign | steps);
  }
  bits += 0xfffu + (bits >> 13 & 1u);
  return static_cast<uint16_t>(sign | (bits - 0x38000000u) >> 13);
}

void narrow(const float* single, uint16_t* half, int64_t count) {
  for (int64_t index = 0; index < count; ++index) half[index] = half_of(single[index]);
}

}  // namespace

#define ONNXQ_ISA "generic"
#include "hadamard_source.h"

namespace onnxq {

const HadamardKernels* hadamard_kernels_generic() { return &kHadamardKernels; }

const HadamardKernels& hadamard_kernels() {
  static const HadamardKernels* const chosen = [] {
    if (const HadamardKernels* kernels = hadamard_kernels_avx512()) return kernels;
    if (const HadamardKernels* kernels = hadamard_kernels_avx2()) return kernels;
    if (const HadamardKernels* kernels = hadamard_kernels_neon()) return kernels;
    return hadamard_kernels_generic();
  }();
  return *chosen;
}

}  // namespace onnxq
