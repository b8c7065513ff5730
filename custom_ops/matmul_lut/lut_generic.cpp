// The baseline of the architecture.
#include "lut.h"

namespace onnxq {
namespace {

constexpr int kOffset = 0;

using Floats = float __attribute__((vector_size(16)));
constexpr int kFloats = 4, kAbreast = 2;
inline Floats zero() { return Floats{}; }
inline Floats spread(float value) { return Floats{value, value, value, value}; }
inline Floats load(const float* from) {
  Floats value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}
inline Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
inline float total(Floats value) { return (value[0] + value[1]) + (value[2] + value[3]); }

using Sums = int32_t;
inline Sums dot(const uint8_t* w, const int8_t* a, int64_t columns) {
  int32_t sum = 0;
  for (int64_t column = 0; column < columns; ++column) {
    sum += static_cast<int8_t>(w[column]) * a[column];
  }
  return sum;
}
inline Floats to_floats(Sums sum) { return Floats{static_cast<float>(sum)}; }

inline void look_up(const uint8_t* table, const uint8_t* lines, LutLayout layout, int64_t inside,
                    uint8_t* out) {
  const int bits = layout.bits, mask = (1 << bits) - 1;
  for (int64_t lane = 0; lane < kUnit; ++lane) {
    int code = lines[lane] >> (inside * bits % 8);
    if (bits == 3 && inside < 6) {
      code = lines[inside / 2 * kUnit + lane] >> (inside % 2 * bits);
    } else if (bits == 3) {
      const int six =
          lines[lane] >> 6 | lines[kUnit + lane] >> 6 << 2 | lines[2 * kUnit + lane] >> 6 << 4;
      code = six >> ((inside - 6) * bits);
    }
    out[lane] = table[code & mask];
  }
}

inline void expand_run(const float* table, float scale, const uint8_t* numbers, int64_t count,
                       float* out) {
  for (int64_t index = 0; index < count; ++index) out[index] = table[numbers[index]] * scale;
}

}  // namespace
}  // namespace onnxq

#include "lut_source.h"

namespace onnxq {

const LutKernels& lut_kernels_generic() {
  static constexpr LutKernels kernels = {"generic", kOffset, round_token, decode,
                                         tile,      nullptr, expand,      tile_float};
  return kernels;
}

}  // namespace onnxq
