// The weights of MatMulLut as `matmul_op.h` wants them, checked.
#pragma once

#include <string>
#include <vector>

#include "../matmul/matmul_op.h"
#include "lut_packed.h"

namespace onnxq::ort {

// Of tables in int8 or float16.
template <ElementType kTable>
class LutWeights {
 public:
  static constexpr const char* kName = "MatMulLut";
  static constexpr ElementType kArrays[] = {ElementType::kUint8, kTable, ElementType::kFloat16};
  static constexpr const char* kAttributes[] = {"rows", "columns", "bits", "group",
                                                "activation_bits"};

  LutWeights(const Attributes& attributes, const std::vector<Tensor>& arrays)
      : kernels_(lut_kernels()),
        rounds_(checked_rounding(attributes)),
        packed_(checked(attributes, arrays), rounds_, kernels_.offset) {}

  int64_t rows() const { return packed_.matrix().rows; }
  int64_t columns() const { return packed_.matrix().columns; }
  int64_t step() const { return kLutRows; }

  size_t prepared_size(int64_t tokens) const {
    return rounds_ ? static_cast<size_t>(tokens * LutToken(packed_.matrix()).size) : 0;
  }
  void prepare(const float* a, int64_t begin, int64_t end, void* prepared) const {
    const LutToken layout(packed_.matrix());
    for (int64_t token = begin; token < end; ++token) {
      uint8_t* to = static_cast<uint8_t*>(prepared) + token * layout.size;
      kernels_.round(layout, a + token * layout.columns, to);
    }
  }
  void multiply(const float* a, const void* prepared, int64_t tokens, float* y, int64_t stride,
                int64_t begin, int64_t end) const {
    const LutMatrix& w = packed_.matrix();
    if (rounds_) {
      lut_multiply(w, kernels_, static_cast<const uint8_t*>(prepared), tokens, y, stride, begin,
                   end);
    } else {
      lut_multiply_float(w, kernels_, a, tokens, y, stride, begin, end);
    }
  }

 private:
  static bool checked_rounding(const Attributes& attributes) {
    const int64_t bits = attributes.integer("activation_bits", 8, 32);
    if (bits != 8 && bits != 32) {
      attributes.fail("attribute activation_bits is " + std::to_string(bits) +
                      ", and must be 8 or 32");
    }
    if (bits == 8 && kTable != ElementType::kInt8) {
      attributes.fail("activation_bits is 8, and tables of float16 take 32");
    }
    return bits == 8;
  }

  static StoredLut checked(const Attributes& attributes, const std::vector<Tensor>& arrays) {
    StoredLut stored{};
    stored.rows = attributes.integer("rows", 1, kMaxSize);
    stored.columns = attributes.integer("columns", 1, kMaxSize);
    stored.bits = static_cast<int>(attributes.integer("bits", 1, 4));
    stored.group = attributes.integer("group", 1, kMaxSize);
    const int64_t group = stored.group;
    if (group < stored.columns && group != 16 && group != 32 && group % kUnit != 0) {
      attributes.fail("attribute group is " + std::to_string(group) +
                      ", and must be 16, 32, a multiple of 64, or all columns");
    }
    const Tensor &codes = arrays[0], &lut = arrays[1], &scales = arrays[2];
    attributes.want("codes", codes, {stored.rows, stored.row_bytes()});
    stored.codes = codes.as<uint8_t>();
    check_shared(attributes, "lut", lut, stored, {int64_t{1} << stored.bits});
    check_shared(attributes, "scales", scales, stored, {});
    if constexpr (kTable == ElementType::kInt8) {
      stored.entries = lut.as<int8_t>();
    } else {
      stored.halves = lut.as<uint16_t>();
    }
    stored.lut_rows = lut.shape[0];
    stored.lut_groups = lut.shape[1];
    if (stored.lut_groups > 1 && group % kUnit != 0) {
      attributes.fail("lut has tables for groups of " + std::to_string(group) +
                      " columns, and must have them for a multiple of 64");
    }
    stored.scales = scales.as<uint16_t>();
    stored.scale_rows = scales.shape[0];
    stored.scale_groups = scales.shape[1];
    return stored;
  }

  // [1 or rows, 1 or groups, ...]
  static void check_shared(const Attributes& attributes, const char* name, const Tensor& tensor,
                           const StoredLut& stored, const std::vector<int64_t>& rest) {
    const std::vector<int64_t>& shape = tensor.shape;
    const bool fits = shape.size() == 2 + rest.size() &&
                      (shape[0] == 1 || shape[0] == stored.rows) &&
                      (shape[1] == 1 || shape[1] == stored.groups()) &&
                      std::vector<int64_t>(shape.begin() + 2, shape.end()) == rest;
    if (fits) return;
    std::string wanted =
        "[1 or " + std::to_string(stored.rows) + ", 1 or " + std::to_string(stored.groups());
    for (int64_t size : rest) wanted += ", " + std::to_string(size);
    attributes.fail(std::string(name) + " has shape " + text_of(shape) + ", and must have " +
                    wanted + "]");
  }

  const LutKernels& kernels_;
  bool rounds_;
  PackedLut packed_;
};

}  // namespace onnxq::ort
