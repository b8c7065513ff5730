// The weights of MatMulE8P, as matmul/matmul_op.h wants them.
#pragma once

#include <string>
#include <vector>

#include "../matmul/matmul_op.h"
#include "e8p_stored.h"

namespace onnxq::ort {

class E8pWeights {
 public:
  static constexpr const char* kName = "MatMulE8P";
  static constexpr ElementType kArrays[] = {ElementType::kUint8, ElementType::kFloat16};
  static constexpr const char* kAttributes[] = {"rows", "columns", "bits", "activation_bits"};

  E8pWeights(const Attributes& attributes, const std::vector<Tensor>& arrays)
      : is_rounded_(rounds(attributes)),
        way_(is_rounded_ ? e8p_kernels().rounded : e8p_kernels().plain),
        packed_(packed(attributes, arrays)) {}

  int64_t rows() const { return packed_.matrix().rows; }
  int64_t columns() const { return packed_.matrix().columns; }
  int64_t step() const { return 2 * kE8pRows; }

  size_t prepared_size(int64_t tokens) const {
    const E8pMatrix& w = packed_.matrix();
    const int64_t bytes = is_rounded_ ? E8pToken(w).stride : e8p_float_bytes(w);
    return static_cast<size_t>(tokens * bytes);
  }
  void prepare(const float* a, int64_t begin, int64_t end, void* prepared) const {
    way_.prepare(packed_.matrix(), a, begin, end, static_cast<uint8_t*>(prepared));
  }
  void multiply(const float*, const void* prepared, int64_t tokens, float* y, int64_t stride,
                int64_t begin, int64_t end) const {
    way_.multiply(packed_.matrix(), static_cast<const uint8_t*>(prepared), tokens, y, stride, begin,
                  end);
  }

 private:
  static bool rounds(const Attributes& attributes) {
    const int64_t bits = attributes.integer("activation_bits", 8, 32);
    if (bits != 8 && bits != 32) {
      attributes.fail("attribute activation_bits is " + std::to_string(bits) +
                      ", and must be 8, to round tokens to int8, or 32");
    }
    return bits == 8;
  }

  static PackedE8p packed(const Attributes& attributes, const std::vector<Tensor>& arrays) {
    StoredE8p stored{};
    stored.rows = attributes.integer("rows", 1, kMaxSize);
    stored.columns = attributes.integer("columns", kE8pWidth, kE8pMost);
    stored.bits = static_cast<int>(attributes.integer("bits", 2, 4));
    if (stored.columns % kE8pWidth != 0) {
      attributes.fail("columns is " + std::to_string(stored.columns) +
                      ", and a code stands for 8 of them: it must be a multiple of 8");
    }
    const Tensor &codes = arrays[0], &scales = arrays[1];
    attributes.want("codes", codes, {stored.rows, stored.columns / kE8pWidth * stored.bits});
    if (scales.shape != std::vector<int64_t>{1, 1}) {
      attributes.want("scales", scales, {stored.rows, 1});
    }
    stored.codes = codes.as<uint8_t>();
    stored.scale_rows = scales.shape[0];
    std::vector<float> wide(static_cast<size_t>(stored.scale_rows));
    hadamard_kernels().widen(scales.as<uint16_t>(), wide.data(), stored.scale_rows);
    stored.scales = wide.data();
    return PackedE8p(stored);
  }

  bool is_rounded_;
  E8pWay way_;
  PackedE8p packed_;
};

}  // namespace onnxq::ort
