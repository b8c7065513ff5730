// The weights of MatMulTrellis, as matmul/matmul_op.h wants them.
#pragma once

#include <string>
#include <vector>

#include "../matmul/matmul_op.h"
#include "trellis_packed.h"

namespace onnxq::ort {

class TrellisWeights {
 public:
  static constexpr const char* kName = "MatMulTrellis";
  static constexpr ElementType kArrays[] = {ElementType::kUint8, ElementType::kFloat16};
  static constexpr const char* kAttributes[] = {"rows",      "columns",    "code",
                                                "step_bits", "state_bits", "activation_bits"};

  TrellisWeights(const Attributes& attributes, const std::vector<Tensor>& arrays)
      : is_rounded_(rounds(attributes)),
        kernels_(trellis_kernels()),
        tokens_(int_kernels()),
        packed_(packed(attributes, arrays)) {}

  int64_t rows() const { return packed_.matrix().rows; }
  int64_t columns() const { return packed_.matrix().columns; }
  int64_t step() const { return kTrellisTile; }

  size_t prepared_size(int64_t tokens) const {
    return is_rounded_ ? static_cast<size_t>(tokens * IntToken(shape()).size) : 0;
  }
  void prepare(const float* a, int64_t begin, int64_t end, void* prepared) const {
    tokens_.prepare(shape(), a, begin, end, static_cast<uint8_t*>(prepared));
  }
  void multiply(const float* a, const void* prepared, int64_t tokens, float* y, int64_t stride,
                int64_t begin, int64_t end) const {
    const TrellisMatrix& w = packed_.matrix();
    if (!is_rounded_) return kernels_.multiply_float(w, a, tokens, y, stride, begin, end);
    kernels_.multiply(w, static_cast<const uint8_t*>(prepared), tokens, y, stride, begin, end);
  }

 private:
  IntMatrix shape() const { return packed_.matrix().token_shape(); }

  static bool rounds(const Attributes& attributes) {
    const int64_t bits = attributes.integer("activation_bits", 8, 32);
    if (bits != 8 && bits != 32) {
      attributes.fail("attribute activation_bits is " + std::to_string(bits) +
                      ", and must be 8, to round tokens to int8, or 32");
    }
    return bits == 8;
  }

  static PackedTrellis packed(const Attributes& attributes, const std::vector<Tensor>& arrays) {
    StoredTrellis stored{};
    stored.rows = attributes.integer("rows", 1, kMaxSize);
    stored.columns = attributes.integer("columns", kTrellisTile, kMaxSize);
    if (stored.columns % kTrellisTile != 0) {
      attributes.fail("columns is " + std::to_string(stored.columns) +
                      ", and 16 of them share a path: it must be a multiple of 16");
    }
    stored.code = static_cast<TrellisCode>(attributes.integer("code", 0, 2));
    const bool is_pair = stored.code == TrellisCode::kHyb;
    const int64_t step = attributes.integer("step_bits", is_pair ? 3 : 1, is_pair ? 8 : 4);
    stored.step_bits = static_cast<int>(step);
    stored.state_bits = static_cast<int>(attributes.integer("state_bits", 10, 16));
    const Tensor &codes = arrays[0], &scales = arrays[1];
    attributes.want("codes", codes, {stored.rows, stored.columns / (is_pair ? 16 : 8) * step});
    if (scales.shape != std::vector<int64_t>{1, 1}) {
      attributes.want("scales", scales, {stored.rows, 1});
    }
    stored.codes = codes.as<uint8_t>();
    stored.scale_rows = scales.shape[0];
    std::vector<float> wide(static_cast<size_t>(stored.scale_rows));
    hadamard_kernels().widen(scales.as<uint16_t>(), wide.data(), stored.scale_rows);
    stored.scales = wide.data();
    return PackedTrellis(stored);
  }

  bool is_rounded_;
  const TrellisKernels& kernels_;
  const IntKernels& tokens_;
  PackedTrellis packed_;
};

}  // namespace onnxq::ort
