// Words for code that compiles for a GPU and for the CPU alike: what a stored weight stands for is
// decoded by the same lines in the kernels and in the tests on a machine without a GPU.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define ONNXQ_DEVICE __host__ __device__ __forceinline__
#define ONNXQ_DEVICE_CALL __host__ __device__ __noinline__
#define ONNXQ_UNROLL _Pragma("unroll")
#else
#define ONNXQ_DEVICE inline
#define ONNXQ_DEVICE_CALL inline
#define ONNXQ_UNROLL
#endif

namespace onnxq::cuda {

constexpr int kOctet = 8;  // columns that are decoded at once

ONNXQ_DEVICE float float_of(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

// A float16 number.
ONNXQ_DEVICE float half_value(uint16_t half) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(half));
#else
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest < 0x0400) return (sign ? -1.0f : 1.0f) * (static_cast<float>(rest) * 0x1p-24f);
  return float_of(sign | ((rest << 13) + (rest < 0x7c00 ? 0x38000000u : 0x70000000u)));
#endif
}

// A whole number below 2^23, less `minus`, which is one too: two cheap instructions.
ONNXQ_DEVICE float whole(uint32_t number, float minus = 0.0f) {
  return float_of(number | 0x4b000000u) - (8388608.0f + minus);
}

// Bytes of `high`:`low` chosen by the nibbles of `selector`, which are 0 to 7.
ONNXQ_DEVICE uint32_t chosen_bytes(uint32_t low, uint32_t high, uint32_t selector) {
#ifdef __CUDA_ARCH__
  return __byte_perm(low, high, selector);
#else
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    word |= static_cast<uint32_t>(both >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  }
  return word;
#endif
}

ONNXQ_DEVICE int ones(uint32_t word) {
#ifdef __CUDA_ARCH__
  return __popc(word);
#else
  return __builtin_popcount(word);
#endif
}

// Read through the cache for what no kernel writes.
template <class Value>
ONNXQ_DEVICE Value read(const Value* from) {
#ifdef __CUDA_ARCH__
  return __ldg(from);
#else
  return *from;
#endif
}

// Number `at` of an array of float16 or float32.
ONNXQ_DEVICE float number(const void* from, bool is_half, int64_t at) {
  if (is_half) return half_value(read(static_cast<const uint16_t*>(from) + at));
  return read(static_cast<const float*>(from) + at);
}

// Eight codes of kBits bits each, 1 to 8, from the byte on where they begin; with kBits = 0 their
// number of bits is known only as it runs. Nothing is read at or behind `end`, where codes are 0.
template <int kBits>
struct Octet {
  uint64_t word = 0;
  int bits;

  ONNXQ_DEVICE Octet(const uint8_t* from, const uint8_t* end, int run_bits)
      : bits(kBits ? kBits : run_bits) {
    const bool is_whole = end - from >= bits;
    if (kBits == 4 && is_whole && reinterpret_cast<uintptr_t>(from) % 4 == 0) {
      word = read(reinterpret_cast<const uint32_t*>(from));
    } else if (kBits == 2 && is_whole && reinterpret_cast<uintptr_t>(from) % 2 == 0) {
      word = read(reinterpret_cast<const uint16_t*>(from));
    } else {
      ONNXQ_UNROLL for (int i = 0; i < (kBits ? kBits : 8); ++i) {
        if (i < bits && from + i < end) word |= static_cast<uint64_t>(read(from + i)) << (8 * i);
      }
    }
  }

  ONNXQ_DEVICE uint32_t at(int i) const {
    const uint32_t mask = (1u << bits) - 1;
    if (kBits && kBits <= 4) return static_cast<uint32_t>(word) >> (i * bits) & mask;
    return static_cast<uint32_t>(word >> (i * bits)) & mask;
  }
};

// Rows or columns that share something: all of them when it is one, else runs of `size`.
ONNXQ_DEVICE int64_t run_of(int64_t index, int64_t size, int64_t all) {
  return size >= all ? 0 : static_cast<uint32_t>(index) / static_cast<uint32_t>(size);
}

}  // namespace onnxq::cuda
