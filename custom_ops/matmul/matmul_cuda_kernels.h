// Y = A W^T for any stored weight, as templates that the <op>_cuda.cu instantiate for what their
// <op>_decode.h says of the weight:
//
//   struct Weight {                      // passed to kernels by value
//     struct Shared { ... };             // tables of a block, 12 KiB at most
//     // Called by all threads of a block, which are synchronized afterwards.
//     void load(Shared& shared, int thread, int threads) const;
//     // Columns [column, column + 8) of a row are w times what is returned; what lies behind the
//     // last column may be anything. `column` is a multiple of 8.
//     float decode(const Shared&, int64_t row, int64_t column, float (&w)[8]) const;
//   };
//
// Up to kFew tokens: a block takes a few rows, its threads eight columns each of 1024, so that
// codes are read once and in order and activations come from the first cache; sums are float32.
// More tokens: tiles of 64 tokens, 64 rows and 64 columns are decoded into shared memory and
// multiplied by tensor cores, float16 activations with weights rounded to float16, float32 ones
// with both rounded to TF32, as ONNX Runtime does; sums are float32.
//
// Activations that are to be rounded to int8 are q = rint(a * (127 / m)) times m / 127, m the
// largest magnitude of those that share a scale.
#pragma once

#include <cuda_runtime.h>
#include <mma.h>

#include "device.h"
#include "element.h"
#include "matmul_cuda.h"

namespace onnxq::cuda {

constexpr int kThreads = 128;  // of a block
constexpr int kWarps = kThreads / 32;
constexpr int64_t kFew = 8;          // tokens up to which weights are read as vectors
constexpr float kLeast = 0x1p-100f;  // the least m

// A number as a type.
template <int kValue>
struct Bits {
  static constexpr int value = kValue;
};

// Eight activations from `column` on, a multiple of 8; zeros behind the last column or token.
template <class Element>
__device__ __forceinline__ void read_octet(const onnxq_matmul& call, int64_t token, int64_t column,
                                           float (&a)[kOctet]) {
  struct alignas(16) Words {
    Element value[16 / sizeof(Element)];
  };
  constexpr int kEach = 16 / static_cast<int>(sizeof(Element));
  const int64_t left = token < call.tokens ? call.columns - column : 0;
  const Element* from = static_cast<const Element*>(call.a) + token * call.columns + column;
  if (left >= kOctet && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
#pragma unroll
    for (int part = 0; part < kOctet / kEach; ++part) {
      const Words words = reinterpret_cast<const Words*>(from)[part];
#pragma unroll
      for (int i = 0; i < kEach; ++i) a[part * kEach + i] = as_float(words.value[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kOctet; ++i) a[i] = i < left ? as_float(from[i]) : 0.0f;
  }
}

__device__ inline float largest(const float (&a)[kOctet], float most) {
#pragma unroll
  for (int i = 0; i < kOctet; ++i) most = fmaxf(most, fabsf(a[i]));
  return most;
}

// The largest of `lanes` neighbouring lanes, 1 to 32 of them.
__device__ inline float largest_of_lanes(float most, int lanes) {
  for (int step = 1; step < lanes; step *= 2) {
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
  }
  return most;
}

// max |a| of a token, found by a warp.
template <class Element>
__device__ inline float largest_of_token(const onnxq_matmul& call, int64_t token) {
  float most = kLeast, a[kOctet];
  const int64_t lane = threadIdx.x % 32;
  for (int64_t column = lane * kOctet; column < call.columns; column += 32 * kOctet) {
    read_octet<Element>(call, token, column, a);
    most = largest(a, most);
  }
  return largest_of_lanes(most, 32);
}

__device__ inline void round_octet(float (&a)[kOctet], float most) {
  const float inverse = 127.0f / most, scale = most / 127.0f;
#pragma unroll
  for (int i = 0; i < kOctet; ++i) a[i] = rintf(a[i] * inverse) * scale;
}

// Rows of a block: what activations are read for.
template <int kTokens>
constexpr int kRowsFor = kTokens == 1 ? 4 : 2;

// What a block of `multiply_few_block` shares.
template <class Weight, int kTokens>
struct FewShared {
  typename Weight::Shared tables;
  float most[kTokens];
  float parts[kWarps][kRowsFor<kTokens> * kTokens];
};

// kTokens tokens times kRowsFor<kTokens> rows for each block.
template <class Weight, class Element, int kTokens>
__device__ __forceinline__ void multiply_few_block(const onnxq_matmul& call, const Weight& weight,
                                                   FewShared<Weight, kTokens>& block) {
  constexpr int kRows = kRowsFor<kTokens>;
  auto& [shared, most, parts] = block;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t token = static_cast<int64_t>(blockIdx.y) * kTokens;
  const bool rounds = call.activation_bits == 8, by_token = rounds && call.activation_span == 0;
  weight.load(shared, thread, kThreads);
  for (int t = warp; by_token && t < kTokens; t += kWarps) {
    const float found = largest_of_token<Element>(call, token + t);
    if (lane == 0) most[t] = found;
  }
  __syncthreads();
  float sums[kRows][kTokens] = {};
  // All lanes of a warp go on as long as one has columns: they look for the largest together.
  for (int64_t first = 0; first + warp * 32 * kOctet < call.columns; first += kThreads * kOctet) {
    const int64_t column = first + thread * kOctet;
    float a[kTokens][kOctet];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      read_octet<Element>(call, token + t, column, a[t]);
      if (by_token) {
        round_octet(a[t], most[t]);
      } else if (rounds) {
        round_octet(a[t], largest_of_lanes(largest(a[t], kLeast), call.activation_span / kOctet));
      }
    }
    if (column >= call.columns) continue;
    const int64_t left = call.columns - column;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = row + r < call.rows ? row + r : call.rows - 1;
      float w[kOctet];
      const float scale = weight.decode(shared, at, column, w);
      if (left < kOctet) {
#pragma unroll
        for (int i = 0; i < kOctet; ++i) w[i] = i < left ? w[i] : 0.0f;
      }
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kOctet; ++i) sum = fmaf(w[i], a[t][i], sum);
        sums[r][t] = fmaf(sum, scale, sums[r][t]);
      }
    }
  }
#pragma unroll
  for (int at = 0; at < kRows * kTokens; ++at) {
    float sum = sums[at / kTokens][at % kTokens];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) parts[warp][at] = sum;
  }
  __syncthreads();
  const int r = thread / kTokens, t = thread % kTokens;
  if (r >= kRows || row + r >= call.rows || token + t >= call.tokens) return;
  float sum = 0.0f;
  for (int part = 0; part < kWarps; ++part) sum += parts[part][thread];
  store(static_cast<Element*>(call.y) + (token + t) * call.rows + row + r, sum);
}

template <class Weight, class Element, int kTokens>
__global__ void __launch_bounds__(kThreads) multiply_few(onnxq_matmul call, Weight weight) {
  __shared__ FewShared<Weight, kTokens> block;
  multiply_few_block<Weight, Element>(call, weight, block);
}

// What tensor cores multiply: fragments of 16 x 16 x kDeep.
struct HalfCores {
  using Tile = __half;
  using Type = __half;
  static constexpr int kDeep = 16;
  template <class Fragment>
  static __device__ void convert(Fragment&) {}
};

struct FloatCores {
  using Tile = float;
  using Type = nvcuda::wmma::precision::tf32;
  static constexpr int kDeep = 8;
  template <class Fragment>
  static __device__ void convert(Fragment& fragment) {
    for (int at = 0; at < fragment.num_elements; ++at) {
      fragment.x[at] = nvcuda::wmma::__float_to_tf32(fragment.x[at]);
    }
  }
};

constexpr int kTile = 64;           // tokens, rows and columns of a tile
constexpr int kStaged = kTile + 4;  // floats between tokens of the results in shared memory

// The tiles of a block: kTile rows of each, whose starts fall into different banks.
template <class Cores>
struct Tiles {
  using Tile = typename Cores::Tile;
  static constexpr int kStride = kTile + 16 / static_cast<int>(sizeof(Tile));
  Tile w[kTile][kStride], a[kTile][kStride];
};

// Eight numbers, side by side at a multiple of 16 bytes.
template <class Tile>
__device__ __forceinline__ void store_octet(Tile* to, const float (&values)[kOctet], float scale) {
  struct alignas(16) Words {
    Tile value[kOctet];
  } words;
#pragma unroll
  for (int i = 0; i < kOctet; ++i) store(&words.value[i], values[i] * scale);
  *reinterpret_cast<Words*>(to) = words;
}

// One step of the sums of a warp: its 32 tokens and 32 rows of the tiles, all their columns.
template <class Cores, class Sums>
__device__ __forceinline__ void multiply_tiles(const Tiles<Cores>& tiles, int token, int row,
                                               Sums (&sums)[2][2]) {
  namespace wmma = nvcuda::wmma;
  constexpr int kStride = Tiles<Cores>::kStride;
#pragma unroll
  for (int column = 0; column < kTile; column += Cores::kDeep) {
    wmma::fragment<wmma::matrix_a, 16, 16, Cores::kDeep, typename Cores::Type, wmma::row_major>
        a[2];
    wmma::fragment<wmma::matrix_b, 16, 16, Cores::kDeep, typename Cores::Type, wmma::col_major>
        w[2];
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      wmma::load_matrix_sync(a[part], &tiles.a[token + 16 * part][column], kStride);
      wmma::load_matrix_sync(w[part], &tiles.w[row + 16 * part][column], kStride);
      Cores::convert(a[part]);
      Cores::convert(w[part]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) wmma::mma_sync(sums[i][j], a[i], w[j], sums[i][j]);
    }
  }
}

// max |a| of the columns that share a scale with the octet of this lane, whose seven neighbours
// have the other octets of a tile of the token.
template <class Element>
__device__ inline float largest_of_span(const onnxq_matmul& call, int64_t token, int64_t column,
                                        const float (&a)[kOctet]) {
  const int64_t span = call.activation_span, begin = column / span * span;
  float most = largest(a, kLeast), other[kOctet];
  for (int64_t at = begin + column % kTile; at < begin + span; at += kTile) {
    read_octet<Element>(call, token, at, other);
    most = largest(other, most);
  }
  return largest_of_lanes(most, static_cast<int>(span < kTile ? span : kTile) / kOctet);
}

// What a block of `multiply_many_block` shares: tiles, and where they were, results.
template <class Weight, class Cores>
struct ManyShared {
  static constexpr int kTilesBytes = static_cast<int>(sizeof(Tiles<Cores>));
  static constexpr int kStagedBytes = static_cast<int>(sizeof(float)) * kTile * kStaged;
  __align__(128) unsigned char memory[kTilesBytes > kStagedBytes ? kTilesBytes : kStagedBytes];
  typename Weight::Shared tables;
  float most[kTile];
};

// kTile tokens times kTile rows for each block; four blocks and more share a multiprocessor, so
// that some decode while others multiply.
template <class Weight, class Element, class Cores>
__device__ __forceinline__ void multiply_many_block(const onnxq_matmul& call, const Weight& weight,
                                                    ManyShared<Weight, Cores>& block) {
  namespace wmma = nvcuda::wmma;
  auto& [memory, shared, most] = block;
  Tiles<Cores>& tiles = *reinterpret_cast<Tiles<Cores>*>(memory);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t token = static_cast<int64_t>(blockIdx.y) * kTile;
  const bool rounds = call.activation_bits == 8, by_token = rounds && call.activation_span == 0;
  weight.load(shared, thread, kThreads);
  for (int t = warp; by_token && t < kTile; t += kWarps) {
    const float found = largest_of_token<Element>(call, token + t);
    if (lane == 0) most[t] = found;
  }
  const int warp_token = warp / 2 * 32, warp_row = warp % 2 * 32;
  wmma::fragment<wmma::accumulator, 16, 16, Cores::kDeep, float> sums[2][2];
#pragma unroll
  for (int part = 0; part < 4; ++part) wmma::fill_fragment(sums[part / 2][part % 2], 0.0f);
  for (int64_t column = 0; column < call.columns; column += kTile) {
    __syncthreads();  // the tables are there, and the tiles have been read
#pragma unroll 1
    for (int at = thread; at < kTile * kTile / kOctet; at += kThreads) {
      const int line = at / (kTile / kOctet), across = at % (kTile / kOctet) * kOctet;
      const int64_t left = call.columns - column - across;
      float octet[kOctet], scale = 0.0f;
      if (left > 0) {
        const int64_t last = call.rows - 1;
        scale =
            weight.decode(shared, row + line < last ? row + line : last, column + across, octet);
      }
#pragma unroll
      for (int i = 0; i < kOctet; ++i) octet[i] = i < left ? octet[i] : 0.0f;
      store_octet(&tiles.w[line][across], octet, scale);
      read_octet<Element>(call, token + line, column + across, octet);
      if (by_token) {
        round_octet(octet, most[line]);
      } else if (rounds) {
        round_octet(octet, largest_of_span<Element>(call, token + line, column + across, octet));
      }
      store_octet(&tiles.a[line][across], octet, 1.0f);
    }
    __syncthreads();
    multiply_tiles<Cores>(tiles, warp_token, warp_row, sums);
  }
  __syncthreads();
  float* staged = reinterpret_cast<float*>(memory);
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    const int i = part / 2, j = part % 2;
    wmma::store_matrix_sync(staged + (warp_token + 16 * i) * kStaged + warp_row + 16 * j,
                            sums[i][j], kStaged, wmma::mem_row_major);
  }
  __syncthreads();
  for (int at = thread; at < kTile * kTile; at += kThreads) {
    const int t = at / kTile, r = at % kTile;
    if (token + t >= call.tokens || row + r >= call.rows) continue;
    store(static_cast<Element*>(call.y) + (token + t) * call.rows + row + r,
          staged[t * kStaged + r]);
  }
}

template <class Weight, class Element, class Cores>
__global__ void __launch_bounds__(kThreads) multiply_many(onnxq_matmul call, Weight weight) {
  __shared__ ManyShared<Weight, Cores> block;
  multiply_many_block<Weight, Element>(call, weight, block);
}

// What is wrong with a call; null when nothing is.
inline const char* refusal(const onnxq_matmul& call) {
  constexpr int64_t kMost = int64_t{1} << 31, kMostTokens = 65535 * 4;
  if (call.rows < 1 || call.columns < 1 || call.rows >= kMost || call.columns >= kMost) {
    return "a weight has no rows or columns, or 2^31 of them";
  }
  if (call.activation_bits != 8 && call.activation_bits != 32) {
    return "activation_bits must be 8 or 32";
  }
  const int32_t span = call.activation_span;
  if (span != 0 && (span < 8 || span > 256 || (span & (span - 1)) != 0)) {
    return "activations share a scale by token, or by 8, 16, 32, 64, 128 or 256 columns";
  }
  if (call.tokens > kMostTokens) return "there are more tokens than a grid of blocks takes";
  return nullptr;
}

template <class Weight>
const char* start(void (*kernel)(onnxq_matmul, Weight), const onnxq_matmul& call,
                  const Weight& weight, int64_t rows, int64_t tokens, void* stream) {
  if (const char* reason = refusal(call)) return reason;
  if (call.tokens < 1) return nullptr;
  cudaLaunchConfig_t how = {};
  how.gridDim = dim3(static_cast<unsigned>((call.rows + rows - 1) / rows),
                     static_cast<unsigned>((call.tokens + tokens - 1) / tokens));
  how.blockDim = dim3(kThreads);
  how.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&how, kernel, call, weight);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <class Weight, class Element>
const char* start_few(const onnxq_matmul& call, const Weight& weight, void* stream) {
  if (call.tokens == 1) {
    return start(multiply_few<Weight, Element, 1>, call, weight, kRowsFor<1>, 1, stream);
  }
  return start(multiply_few<Weight, Element, 4>, call, weight, kRowsFor<4>, 4, stream);
}

// Start Y = A W^T on `stream`, a cudaStream_t. Null, or what is wrong.
template <class Weight>
const char* multiply_few_tokens(const onnxq_matmul& call, const Weight& weight, void* stream) {
  return call.is_half ? start_few<Weight, __half>(call, weight, stream)
                      : start_few<Weight, float>(call, weight, stream);
}

template <class Weight>
const char* multiply_many_tokens(const onnxq_matmul& call, const Weight& weight, void* stream) {
  return call.is_half
             ? start(multiply_many<Weight, __half, HalfCores>, call, weight, kTile, kTile, stream)
             : start(multiply_many<Weight, float, FloatCores>, call, weight, kTile, kTile, stream);
}

}  // namespace onnxq::cuda
