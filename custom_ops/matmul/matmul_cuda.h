// Y = A W^T on a GPU: what every operator for matrix products is asked there. Plain C names
// and structs, so that a program in any language can call it. Arrays lie on the device, and those
// of the weight are the ones stored in the file; nothing is repacked or allocated.
#pragma once

#include <cstdint>

// Seen from outside the library that holds the kernels: a plugin of TensorRT, tests.
#define ONNXQ_EXPORT __attribute__((visibility("default")))

extern "C" {

struct onnxq_matmul {
  const void* a;                  // [tokens, columns]
  void* y;                        // [tokens, rows]
  int64_t tokens, rows, columns;  // rows and columns below 2^31
  int32_t is_half;                // A and Y are float16; else float32
  int32_t activation_bits;        // 8: A is rounded to int8; 32: taken as it is
  // Columns of a token that share a scale when A is rounded: 8, 16, 32, 64, 128 or 256; 0 for the
  // whole token.
  int32_t activation_span;
};
}
