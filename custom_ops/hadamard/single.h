// One lane: for segments shorter than a register. Read by the hadamard_*.cpp alone.
#pragma once

#include <cstdint>

namespace {

struct Single {
  static constexpr int kWidth = 1, kRadix = 8, kOutputs = 4, kColumns = 1;
  using Vector = float;
  static Vector load(const float* from) { return *from; }
  static void store(float* to, Vector value) { *to = value; }
  static Vector all(float value) { return value; }
  static Vector add(Vector a, Vector b) { return a + b; }
  static Vector subtract(Vector a, Vector b) { return a - b; }
  static Vector multiply(Vector a, Vector b) { return a * b; }
  static Vector multiply_add(Vector a, Vector b, Vector sum) {
#if defined(__FMA__) || defined(ONNXQ_FUSED)
    return __builtin_fmaf(a, b, sum);
#else
    return a * b + sum;
#endif
  }
  static Vector within(Vector v) { return v; }
};

}  // namespace
