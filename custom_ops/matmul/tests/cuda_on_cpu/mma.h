// Tensor cores of CUDA, on a CPU (see cuda_runtime.h here): every lane holds whole matrices, and
// all lanes of a warp must come.
#pragma once

#include "cuda_runtime.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major };
namespace precision {
struct tf32 {};
}  // namespace precision

template <class Type>
struct Stored {
  using Element = Type;
};
template <>
struct Stored<precision::tf32> {
  using Element = float;
};

template <class Use, int kM, int kN, int kK, class Type, class Layout = void>
struct fragment {
  static constexpr int kRows = std::is_same_v<Use, matrix_b> ? kK : kM;
  static constexpr int kColumns = std::is_same_v<Use, matrix_a> ? kK : kN;
  static constexpr int num_elements = kRows * kColumns;
  typename Stored<Type>::Element x[num_elements];
};

// Waits for the warp; whether this is the lane that works.
inline bool works() {
  cuda_on_cpu::Block::running->wait_for_warp();
  return threadIdx.x % cuda_on_cpu::Block::kLanes == 0;
}

template <class Fragment>
void fill_fragment(Fragment& to, float value) {
  for (auto& element : to.x) element = value;
}

template <class Use, int kM, int kN, int kK, class Type, class Layout, class Element>
void load_matrix_sync(fragment<Use, kM, kN, kK, Type, Layout>& to, const Element* from,
                      int stride) {
  using Fragment = fragment<Use, kM, kN, kK, Type, Layout>;
  if (!works()) return;
  for (int row = 0; row < Fragment::kRows; ++row) {
    for (int column = 0; column < Fragment::kColumns; ++column) {
      const int at =
          std::is_same_v<Layout, row_major> ? row * stride + column : column * stride + row;
      to.x[row * Fragment::kColumns + column] = from[at];
    }
  }
}

template <class Sum, class A, class B>
void mma_sync(Sum& to, const A& a, const B& b, const Sum& plus) {
  if (!works()) return;
  for (int row = 0; row < Sum::kRows; ++row) {
    for (int column = 0; column < Sum::kColumns; ++column) {
      float sum = plus.x[row * Sum::kColumns + column];
      for (int k = 0; k < A::kColumns; ++k) {
        sum += static_cast<float>(a.x[row * A::kColumns + k]) *
               static_cast<float>(b.x[k * B::kColumns + column]);
      }
      to.x[row * Sum::kColumns + column] = sum;
    }
  }
}

template <class Sum>
void store_matrix_sync(float* to, const Sum& from, int stride, layout_t) {
  if (!works()) return;
  for (int row = 0; row < Sum::kRows; ++row) {
    for (int column = 0; column < Sum::kColumns; ++column) {
      to[row * stride + column] = from.x[row * Sum::kColumns + column];
    }
  }
}

// Ten bits of mantissa, rounded to nearest, ties away from zero.
inline float __float_to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits = (bits + 0x1000u) & ~0x1fffu;
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}

}  // namespace nvcuda::wmma
