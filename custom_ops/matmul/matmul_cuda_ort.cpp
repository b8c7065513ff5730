// The operators for matrix products, on CUDA: attributes and arrays of each, as its kernels take
// them.
#include "matmul_cuda_ort.h"

#include <algorithm>
#include <string>
#include <vector>

#include "../matmul_codebook/matmul_codebook_cuda.h"
#include "../matmul_e8p/matmul_e8p_cuda.h"
#include "../matmul_int/matmul_int_cuda.h"
#include "../matmul_lut/matmul_lut_cuda.h"
#include "../matmul_ternary/matmul_ternary_cuda.h"
#include "../matmul_trellis/matmul_trellis_cuda.h"
#include "../ort/ops.h"

namespace onnxq::ort {
namespace {

int64_t whole(int64_t count, int64_t each) { return (count + each - 1) / each; }

int32_t small(const Attributes& attributes, const char* name, int64_t lowest, int64_t highest) {
  return static_cast<int32_t>(attributes.integer(name, lowest, highest));
}

// An array of two axes, each of which is one long or as long as is said, then of `rest`.
void want_shared(const Attributes& attributes, const char* name, const Tensor& array, int64_t rows,
                 int64_t groups, std::vector<int64_t> rest = {}) {
  std::vector<int64_t> wanted = {rows, groups};
  for (int axis = 0; axis < 2 && array.shape.size() > 1; ++axis) {
    if (array.shape[axis] == 1) wanted[axis] = 1;
  }
  wanted.insert(wanted.end(), rest.begin(), rest.end());
  attributes.want(name, array, wanted);
}

template <ElementType kScales>
struct IntCuda {
  static constexpr const char* kName = "MatMulInt";
  static constexpr ElementType kArrays[] = {ElementType::kUint8, kScales, ElementType::kInt8,
                                            ElementType::kUint8};
  static constexpr const char* kAttributes[] = {"rows",  "columns", "bits",
                                                "group", "signed",  "activation_bits"};
  static constexpr auto kMultiply = onnxq_matmul_int_cuda;
  static constexpr int kSpan = 0;

  static onnxq_int stored(const Attributes& attributes, const Shape& shape,
                          const std::vector<Tensor>& arrays) {
    onnxq_int stored{};
    stored.bits = small(attributes, "bits", 1, 8);
    stored.is_signed = small(attributes, "signed", 0, 1);
    stored.is_half = kScales == ElementType::kFloat16;
    stored.group = std::min(attributes.integer("group", 1, kMaxSize), shape.columns);
    const int64_t groups = whole(shape.columns, stored.group);
    const Tensor &codes = arrays[0], &scales = arrays[1], &ratios = arrays[2], &zeros = arrays[3];
    attributes.want("codes", codes, {shape.rows, whole(shape.columns * stored.bits, 8)});
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
      const int64_t bytes = whole(groups * stored.bits, 8);
      if (zeros.shape != std::vector<int64_t>{1, bytes}) {
        attributes.want("zeros", zeros, {shape.rows, bytes});
      }
      stored.zeros = zeros.as<uint8_t>();
      stored.zero_rows = zeros.shape[0];
    }
    return stored;
  }
};

template <ElementType kTable>
struct LutCuda {
  static constexpr const char* kName = "MatMulLut";
  static constexpr ElementType kArrays[] = {ElementType::kUint8, kTable, ElementType::kFloat16};
  static constexpr const char* kAttributes[] = {"rows", "columns", "bits", "group",
                                                "activation_bits"};
  static constexpr auto kMultiply = onnxq_matmul_lut_cuda;
  static constexpr int kSpan = 128;

  static onnxq_lut stored(const Attributes& attributes, const Shape& shape,
                          const std::vector<Tensor>& arrays) {
    onnxq_lut stored{};
    stored.bits = small(attributes, "bits", 1, 4);
    stored.is_half = kTable == ElementType::kFloat16;
    stored.group = attributes.integer("group", 1, kMaxSize);
    const int64_t groups = whole(shape.columns, stored.group);
    const Tensor &codes = arrays[0], &lut = arrays[1], &scales = arrays[2];
    attributes.want("codes", codes, {shape.rows, whole(shape.columns * stored.bits, 8)});
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

struct CodebookCuda {
  static constexpr const char* kName = "MatMulCodebook";
  static constexpr ElementType kArrays[] = {ElementType::kUint8, ElementType::kInt8,
                                            ElementType::kFloat16};
  static constexpr const char* kAttributes[] = {"rows",       "columns",       "dimension",
                                                "bits",       "books",         "group",
                                                "block_rows", "block_columns", "activation_bits"};
  static constexpr auto kMultiply = onnxq_matmul_codebook_cuda;
  static constexpr int kSpan = 0;

  static onnxq_codebook stored(const Attributes& attributes, const Shape& shape,
                               const std::vector<Tensor>& arrays) {
    onnxq_codebook stored{};
    stored.dimension = small(attributes, "dimension", 1, 8);
    stored.code_bits = small(attributes, "bits", 4, 16);
    stored.books = small(attributes, "books", 1, 16);
    stored.group = attributes.integer("group", 1, kMaxSize);
    stored.block_rows = attributes.integer("block_rows", 1, kMaxSize);
    stored.block_columns = attributes.integer("block_columns", 1, kMaxSize);
    const Tensor &codes = arrays[0], &codebook = arrays[1], &scales = arrays[2];
    const int64_t runs = shape.columns / stored.dimension;
    attributes.want("codes", codes, {shape.rows, whole(runs * stored.books * stored.code_bits, 8)});
    attributes.want(
        "codebook", codebook,
        {whole(shape.rows, stored.block_rows), whole(shape.columns, stored.block_columns),
         stored.books, int64_t{1} << stored.code_bits, stored.dimension});
    const int64_t groups = whole(shape.columns, stored.group);
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

struct E8pCuda {
  static constexpr const char* kName = "MatMulE8P";
  static constexpr ElementType kArrays[] = {ElementType::kUint8, ElementType::kFloat16};
  static constexpr const char* kAttributes[] = {"rows", "columns", "bits", "activation_bits"};
  static constexpr auto kMultiply = onnxq_matmul_e8p_cuda;
  static constexpr int kSpan = 0;

  static onnxq_e8p stored(const Attributes& attributes, const Shape& shape,
                          const std::vector<Tensor>& arrays) {
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

template <ElementType kScales>
struct TernaryCuda {
  static constexpr const char* kName = "MatMulTernary";
  static constexpr ElementType kArrays[] = {ElementType::kUint8, kScales};
  static constexpr const char* kAttributes[] = {"rows", "columns", "group", "planes",
                                                "activation_bits"};
  static constexpr auto kMultiply = onnxq_matmul_ternary_cuda;
  static constexpr int kSpan = 0;

  static onnxq_ternary stored(const Attributes& attributes, const Shape& shape,
                              const std::vector<Tensor>& arrays) {
    onnxq_ternary stored{};
    stored.group = std::min(attributes.integer("group", 1, kMaxSize), shape.columns);
    stored.planes = small(attributes, "planes", 1, 2);
    stored.is_half = kScales == ElementType::kFloat16;
    attributes.want("codes", arrays[0], {shape.rows, stored.planes * whole(shape.columns, 5)});
    const std::vector<int64_t> one_row = {1, stored.planes * whole(shape.columns, stored.group)};
    if (arrays[1].shape != one_row) {
      attributes.want("scales", arrays[1], {shape.rows, one_row[1]});
    }
    stored.codes = arrays[0].as<uint8_t>();
    stored.scales = arrays[1].data;
    stored.scale_rows = arrays[1].shape[0];
    return stored;
  }
};

struct TrellisCuda {
  static constexpr const char* kName = "MatMulTrellis";
  static constexpr ElementType kArrays[] = {ElementType::kUint8, ElementType::kFloat16};
  static constexpr const char* kAttributes[] = {"rows",      "columns",    "code",
                                                "step_bits", "state_bits", "activation_bits"};
  static constexpr auto kMultiply = onnxq_matmul_trellis_cuda;
  static constexpr int kSpan = 0;

  static onnxq_trellis stored(const Attributes& attributes, const Shape& shape,
                              const std::vector<Tensor>& arrays) {
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

}  // namespace

std::vector<const CustomOp*> matmul_cuda_ops(const Api* api) {
  constexpr ElementType kSingle = ElementType::kFloat, kHalf = ElementType::kFloat16;
  return matmul_cuda_ops_of<IntCuda<kSingle>, IntCuda<kHalf>, LutCuda<ElementType::kInt8>,
                            LutCuda<kHalf>, CodebookCuda, E8pCuda, TernaryCuda<kSingle>,
                            TernaryCuda<kHalf>, TrellisCuda>(api);
}

}  // namespace onnxq::ort
