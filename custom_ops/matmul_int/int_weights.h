// The weights of MatMulInt as ONNX Runtime gives them: checked, then repacked.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "../matmul/matmul_op.h"
#include "stored.h"

namespace onnxq::ort {

// Weights whose scales are float32 or float16.
template <ElementType kScales>
class IntWeights {
 public:
  static constexpr const char* kName = "MatMulInt";
  static constexpr ElementType kArrays[] = {ElementType::kUint8, kScales, ElementType::kInt8,
                                            ElementType::kUint8};
  static constexpr const char* kAttributes[] = {"rows",  "columns", "bits",
                                                "group", "signed",  "activation_bits"};

  IntWeights(const Attributes& attributes, const std::vector<Tensor>& arrays)
      : kernels_(int_kernels()), packed_(packed(attributes, arrays)) {}

  int64_t rows() const { return packed_.matrix().rows; }
  int64_t columns() const { return packed_.matrix().columns; }
  int64_t step() const { return 2 * kIntRows; }

  size_t prepared_size(int64_t tokens) const {
    const int64_t room = (tokens + kernels_.tile - 1) / kernels_.tile * kernels_.tile;
    return static_cast<size_t>(room * IntToken(packed_.matrix()).size);
  }
  void prepare(const float* a, int64_t begin, int64_t end, void* prepared) const {
    kernels_.prepare(packed_.matrix(), a, begin, end, static_cast<uint8_t*>(prepared));
  }
  void multiply(const float*, const void* prepared, int64_t tokens, float* y, int64_t stride,
                int64_t begin, int64_t end) const {
    kernels_.multiply(packed_.matrix(), static_cast<const uint8_t*>(prepared), tokens, y, stride,
                      begin, end);
  }

 private:
  static PackedIntegers packed(const Attributes& attributes, const std::vector<Tensor>& arrays) {
    StoredIntegers stored = checked(attributes, arrays);
    const Tensor& scales = arrays[1];
    std::vector<float> wide;
    if constexpr (kScales == ElementType::kFloat) {
      stored.scales = scales.as<float>();
    } else {
      wide.resize(static_cast<size_t>(scales.count()));
      hadamard_kernels().widen(scales.as<uint16_t>(), wide.data(), scales.count());
      stored.scales = wide.data();
    }
    return PackedIntegers(stored);
  }

  // Everything but the scales, whose shape alone is looked at.
  static StoredIntegers checked(const Attributes& attributes, const std::vector<Tensor>& arrays) {
    StoredIntegers stored{};
    attributes.integer("activation_bits", 8, 8);
    stored.rows = attributes.integer("rows", 1, kMaxSize);
    stored.columns = attributes.integer("columns", 1, kMaxSize);
    stored.bits = static_cast<int>(attributes.integer("bits", 1, 8));
    stored.group = attributes.integer("group", 1, kMaxSize);
    stored.is_signed = attributes.integer("signed", 0, 1) == 1;
    const int64_t rows = stored.rows, groups = stored.groups();
    const Tensor &codes = arrays[0], &scales = arrays[1], &ratios = arrays[2], &zeros = arrays[3];
    attributes.want("codes", codes, {rows, stored.bytes_of(stored.columns)});
    stored.codes = codes.as<uint8_t>();
    // A single 1 stands for none.
    const std::vector<int64_t> single = {1, 1};
    const bool has_ratios = ratios.shape != single || *ratios.as<int8_t>() != 1;
    if (has_ratios) {
      attributes.want("ratios", ratios, {rows, groups});
      stored.ratios = ratios.as<int8_t>();
    }
    const std::vector<int64_t>& shape = scales.shape;
    if (shape.size() != 2 || (shape[0] != 1 && shape[0] != rows) ||
        (shape[1] != 1 && (has_ratios || shape[1] != groups))) {
      attributes.fail("scales has shape " + text_of(shape) + ", and must have [1 or " +
                      std::to_string(rows) + ", 1" +
                      (has_ratios ? std::string() : " or " + std::to_string(groups)) + "]");
    }
    stored.scale_rows = shape[0];
    stored.scale_groups = shape[1];
    if (!stored.is_signed) {
      if (zeros.shape != std::vector<int64_t>{1, stored.bytes_of(groups)}) {
        attributes.want("zeros", zeros, {rows, stored.bytes_of(groups)});
      }
      stored.zeros = zeros.as<uint8_t>();
      stored.zero_rows = zeros.shape[0];
    } else {
      attributes.want("zeros", zeros, single);
      if (*zeros.as<uint8_t>() != 0) attributes.fail("zeros must be 0 where codes are signed");
    }
    check_sums(attributes, stored);
    return stored;
  }

  // Products of one row and one token stay in int32, and codes times ratios in int8.
  static void check_sums(const Attributes& attributes, const StoredIntegers& stored) {
    const int highest = (1 << stored.bits) - 1;
    const int64_t summed = stored.ratios ? stored.columns : std::min(stored.group, stored.columns);
    const int64_t widest = INT32_MAX / (127 * (stored.ratios ? 127 : highest));
    if (summed > widest) {
      attributes.fail("sums of " + std::to_string(summed) + " products do not fit int32; at most " +
                      std::to_string(widest) + " columns may share a scale");
    }
    if (stored.ratios == nullptr) return;
    if (stored.bits > kIntRatioBits) attributes.fail("ratios go with 1 to 4 bits");
    const int64_t groups = stored.groups();
    for (int64_t at = 0; at < stored.rows * groups; ++at) {
      const int zero = stored.zero(at / groups, at % groups), ratio = stored.ratios[at];
      const int most = std::max(zero, highest - zero) * std::abs(ratio);
      if (ratio == 0 || most > 127 || highest * std::abs(ratio) > 255) {
        attributes.fail("ratio " + std::to_string(ratio) + " of row " +
                        std::to_string(at / groups) + ", group " + std::to_string(at % groups) +
                        " must not be 0, and its products with codes must fit int8");
      }
    }
  }

  const IntKernels& kernels_;
  PackedIntegers packed_;
};

}  // namespace onnxq::ort
