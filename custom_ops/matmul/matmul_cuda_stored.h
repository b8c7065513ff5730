// What the kernels of CUDA are given for a product with stored weights, from the attributes of its
// node and the arrays behind A, for any runtime. Each operator says of itself:
//
//   struct Product {
//     static constexpr const char* kName;
//     static constexpr const char kArrays[];           // the types of the arrays behind A:
//         // u uint8, i int8, h float16, s float32 or float16, t int8 or float16
//     static constexpr const char* kAttributes[];      // integers, all there
//     // The struct of <op>_cuda.h. Arrays lie on the device: only their shapes can be checked.
//     static Stored stored(const Attributes&, const Shape&, const std::vector<Tensor>& arrays,
//                          bool is_half);              // which of their two types s or t have
//     static constexpr auto kMultiply = onnxq_..._cuda;
//     static constexpr int kSpan;                      // activation_span of onnxq_matmul
//   };
//
// `StoredProduct<Product>` is a node of it. Nothing is repacked: kernels read the arrays of the
// file.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "../matmul_codebook/matmul_codebook_cuda.h"
#include "../matmul_e8p/matmul_e8p_cuda.h"
#include "../matmul_int/matmul_int_cuda.h"
#include "../matmul_lut/matmul_lut_cuda.h"
#include "../matmul_ternary/matmul_ternary_cuda.h"
#include "../matmul_trellis/matmul_trellis_cuda.h"
#include "matmul_cuda.h"
#include "node.h"

namespace onnxq::cuda {

// What every weight has.
struct Shape {
  int64_t rows, columns;
};

inline int64_t whole_parts(int64_t count, int64_t each) { return (count + each - 1) / each; }

inline int32_t small(const Attributes& attributes, const char* name, int64_t lowest,
                     int64_t highest) {
  return static_cast<int32_t>(attributes.integer(name, lowest, highest));
}

// An array of two axes, each of which is one long or as long as is said, then of `rest`.
inline void want_shared(const Attributes& attributes, const char* name, const Tensor& array,
                        int64_t rows, int64_t groups, std::vector<int64_t> rest = {}) {
  std::vector<int64_t> wanted = {rows, groups};
  for (int axis = 0; axis < 2 && array.shape.size() > 1; ++axis) {
    if (array.shape[axis] == 1) wanted[axis] = 1;
  }
  wanted.insert(wanted.end(), rest.begin(), rest.end());
  attributes.want(name, array, wanted);
}

struct IntProduct {
  static constexpr const char* kName = "MatMulInt";
  static constexpr const char kArrays[] = "usiu";
  static constexpr const char* kAttributes[] = {"rows",  "columns", "bits",
                                                "group", "signed",  "activation_bits"};
  static constexpr auto kMultiply = onnxq_matmul_int_cuda;
  static constexpr int kSpan = 0;

  static onnxq_int stored(const Attributes& attributes, const Shape& shape,
                          const std::vector<Tensor>& arrays, bool is_half) {
    onnxq_int stored{};
    stored.bits = small(attributes, "bits", 1, 8);
    stored.is_signed = small(attributes, "signed", 0, 1);
    stored.is_half = is_half;
    stored.group = std::min(attributes.integer("group", 1, kMaxSize), shape.columns);
    const int64_t groups = whole_parts(shape.columns, stored.group);
    const Tensor &codes = arrays[0], &scales = arrays[1], &ratios = arrays[2], &zeros = arrays[3];
    attributes.want("codes", codes, {shape.rows, whole_parts(shape.columns * stored.bits, 8)});
    want_shared(attributes, "scales", scales, shape.rows, groups);
    stored.codes = codes.as<uint8_t>();
    stored.scales = scales.data;
    stored.scale_rows = scales.shape[0];
    stored.scale_groups = scales.shape[1];
    // [1, 1] stands for none: a single 1, or 0.
    const std::vector<int64_t> none = {1, 1};
    if (ratios.shape != none || (shape.rows == 1 && groups == 1)) {
      attributes.want("ratios", ratios, {shape.rows, groups});
      stored.ratios = ratios.as<int8_t>();
    }
    if (stored.is_signed) {
      attributes.want("zeros", zeros, none);
    } else {
      const int64_t bytes = whole_parts(groups * stored.bits, 8);
      if (zeros.shape != std::vector<int64_t>{1, bytes}) {
        attributes.want("zeros", zeros, {shape.rows, bytes});
      }
      stored.zeros = zeros.as<uint8_t>();
      stored.zero_rows = zeros.shape[0];
    }
    return stored;
  }
};

struct LutProduct {
  static constexpr const char* kName = "MatMulLut";
  static constexpr const char kArrays[] = "uth";
  static constexpr const char* kAttributes[] = {"rows", "columns", "bits", "group",
                                                "activation_bits"};
  static constexpr auto kMultiply = onnxq_matmul_lut_cuda;
  static constexpr int kSpan = 128;

  static onnxq_lut stored(const Attributes& attributes, const Shape& shape,
                          const std::vector<Tensor>& arrays, bool is_half) {
    onnxq_lut stored{};
    stored.bits = small(attributes, "bits", 1, 4);
    stored.is_half = is_half;
    stored.group = attributes.integer("group", 1, kMaxSize);
    const int64_t groups = whole_parts(shape.columns, stored.group);
    const Tensor &codes = arrays[0], &lut = arrays[1], &scales = arrays[2];
    attributes.want("codes", codes, {shape.rows, whole_parts(shape.columns * stored.bits, 8)});
    want_shared(attributes, "lut", lut, shape.rows, groups, {int64_t{1} << stored.bits});
    want_shared(attributes, "scales", scales, shape.rows, groups);
    stored.codes = codes.as<uint8_t>();
    stored.lut = lut.data;
    stored.lut_rows = lut.shape[0];
    stored.lut_groups = lut.shape[1];
    stored.scales = scales.as<uint16_t>();
    stored.scale_rows = scales.shape[0];
    stored.scale_groups = scales.shape[1];
    return stored;
  }
};

struct CodebookProduct {
  static constexpr const char* kName = "MatMulCodebook";
  static constexpr const char kArrays[] = "uih";
  static constexpr const char* kAttributes[] = {"rows",       "columns",       "dimension",
                                                "bits",       "books",         "group",
                                                "block_rows", "block_columns", "activation_bits"};
  static constexpr auto kMultiply = onnxq_matmul_codebook_cuda;
  static constexpr int kSpan = 0;

  static onnxq_codebook stored(const Attributes& attributes, const Shape& shape,
                               const std::vector<Tensor>& arrays, bool) {
    onnxq_codebook stored{};
    stored.dimension = small(attributes, "dimension", 1, 8);
    stored.code_bits = small(attributes, "bits", 4, 16);
    stored.books = small(attributes, "books", 1, 16);
    stored.group = attributes.integer("group", 1, kMaxSize);
    stored.block_rows = attributes.integer("block_rows", 1, kMaxSize);
    stored.block_columns = attributes.integer("block_columns", 1, kMaxSize);
    const Tensor &codes = arrays[0], &codebook = arrays[1], &scales = arrays[2];
    const int64_t runs = shape.columns / stored.dimension;
    attributes.want("codes", codes,
                    {shape.rows, whole_parts(runs * stored.books * stored.code_bits, 8)});
    attributes.want("codebook", codebook,
                    {whole_parts(shape.rows, stored.block_rows),
                     whole_parts(shape.columns, stored.block_columns), stored.books,
                     int64_t{1} << stored.code_bits, stored.dimension});
    const int64_t groups = whole_parts(shape.columns, stored.group);
    if (scales.shape != std::vector<int64_t>{1, groups}) {
      attributes.want("scales", scales, {shape.rows, groups});
    }
    stored.codes = codes.as<uint8_t>();
    stored.codebook = codebook.as<int8_t>();
    stored.scales = scales.as<uint16_t>();
    stored.scale_rows = scales.shape[0];
    return stored;
  }
};

struct E8pProduct {
  static constexpr const char* kName = "MatMulE8P";
  static constexpr const char kArrays[] = "uh";
  static constexpr const char* kAttributes[] = {"rows", "columns", "bits", "activation_bits"};
  static constexpr auto kMultiply = onnxq_matmul_e8p_cuda;
  static constexpr int kSpan = 0;

  static onnxq_e8p stored(const Attributes& attributes, const Shape& shape,
                          const std::vector<Tensor>& arrays, bool) {
    onnxq_e8p stored{};
    stored.bits = small(attributes, "bits", 2, 4);
    attributes.want("codes", arrays[0], {shape.rows, shape.columns / 8 * stored.bits});
    want_shared(attributes, "scales", arrays[1], shape.rows, 1);
    stored.codes = arrays[0].as<uint8_t>();
    stored.scales = arrays[1].as<uint16_t>();
    stored.scale_rows = arrays[1].shape[0];
    return stored;
  }
};

struct TernaryProduct {
  static constexpr const char* kName = "MatMulTernary";
  static constexpr const char kArrays[] = "us";
  static constexpr const char* kAttributes[] = {"rows", "columns", "group", "planes",
                                                "activation_bits"};
  static constexpr auto kMultiply = onnxq_matmul_ternary_cuda;
  static constexpr int kSpan = 0;

  static onnxq_ternary stored(const Attributes& attributes, const Shape& shape,
                              const std::vector<Tensor>& arrays, bool is_half) {
    onnxq_ternary stored{};
    stored.group = std::min(attributes.integer("group", 1, kMaxSize), shape.columns);
    stored.planes = small(attributes, "planes", 1, 2);
    stored.is_half = is_half;
    attributes.want("codes", arrays[0],
                    {shape.rows, stored.planes * whole_parts(shape.columns, 5)});
    const std::vector<int64_t> one_row = {1,
                                          stored.planes * whole_parts(shape.columns, stored.group)};
    if (arrays[1].shape != one_row) {
      attributes.want("scales", arrays[1], {shape.rows, one_row[1]});
    }
    stored.codes = arrays[0].as<uint8_t>();
    stored.scales = arrays[1].data;
    stored.scale_rows = arrays[1].shape[0];
    return stored;
  }
};

struct TrellisProduct {
  static constexpr const char* kName = "MatMulTrellis";
  static constexpr const char kArrays[] = "uh";
  static constexpr const char* kAttributes[] = {"rows",      "columns",    "code",
                                                "step_bits", "state_bits", "activation_bits"};
  static constexpr auto kMultiply = onnxq_matmul_trellis_cuda;
  static constexpr int kSpan = 0;

  static onnxq_trellis stored(const Attributes& attributes, const Shape& shape,
                              const std::vector<Tensor>& arrays, bool) {
    onnxq_trellis stored{};
    stored.code = small(attributes, "code", 0, 2);
    stored.step_bits = small(attributes, "step_bits", 1, 8);
    stored.state_bits = small(attributes, "state_bits", 1, 16);
    const int64_t steps = shape.columns / (stored.code == 2 ? 2 : 1);
    attributes.want("codes", arrays[0], {shape.rows, steps * stored.step_bits / 8});
    want_shared(attributes, "scales", arrays[1], shape.rows, 1);
    stored.codes = arrays[0].as<uint8_t>();
    stored.scales = arrays[1].as<uint16_t>();
    stored.scale_rows = arrays[1].shape[0];
    return stored;
  }
};

template <class... Products>
struct List {};

// All of them.
using Products =
    List<IntProduct, LutProduct, CodebookProduct, E8pProduct, TernaryProduct, TrellisProduct>;

// Whether one of the arrays may have either of two types.
constexpr bool has_choice(const char* kinds) {
  for (; *kinds != '\0'; ++kinds) {
    if (*kinds == 's' || *kinds == 't') return true;
  }
  return false;
}

template <class Product>
class StoredProduct {
 public:
  // `is_half`: A and Y are float16, else float32; `has_halves`: arrays of two possible types are.
  StoredProduct(Attributes attributes, bool is_half, bool has_halves)
      : attributes_(std::move(attributes)), has_halves_(has_halves) {
    shape_ = {attributes_.integer("rows", 1, kMaxSize - 1),
              attributes_.integer("columns", 1, kMaxSize - 1)};
    call_.rows = shape_.rows;
    call_.columns = shape_.columns;
    call_.is_half = is_half;
    call_.activation_bits = static_cast<int32_t>(attributes_.integer("activation_bits", 8, 32));
    call_.activation_span = Product::kSpan;
  }

  // The shape of Y for one of A.
  std::vector<int64_t> shape_of_result(std::vector<int64_t> a) const {
    if (a.empty() || a.back() != shape_.columns) {
      attributes_.fail("A has shape " + text_of(a) +
                       "; its last axis must be columns = " + std::to_string(shape_.columns));
    }
    a.back() = shape_.rows;
    return a;
  }

  // What is wrong with the shapes of the arrays behind A is thrown.
  auto stored(const std::vector<Tensor>& arrays) const {
    return Product::stored(attributes_, shape_, arrays, has_halves_);
  }

  // Starts Y on `stream`, a cudaStream_t.
  void start(const Tensor& a, const std::vector<Tensor>& arrays, void* y, void* stream) const {
    const auto weight = stored(arrays);
    onnxq_matmul call = call_;
    call.a = a.data;
    call.y = y;
    call.tokens = a.count() / shape_.columns;
    const char* const error = Product::kMultiply(&call, &weight, stream);
    if (error != nullptr) attributes_.fail(std::string("on CUDA: ") + error);
  }

 private:
  Attributes attributes_;
  Shape shape_;
  onnxq_matmul call_{};
  bool has_halves_;
};

}  // namespace onnxq::cuda
