// The weights of MatMulTernary as ONNX Runtime gives them: checked, then repacked.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../cpu/cpu.h"
#include "../matmul/matmul_op.h"
#include "trits.h"

namespace onnxq::ort {

// Weights whose scales are float32 or float16.
template <ElementType kScales>
class TernaryWeights {
 public:
  static constexpr const char* kName = "MatMulTernary";
  static constexpr ElementType kArrays[] = {ElementType::kUint8, kScales};
  static constexpr const char* kAttributes[] = {"rows", "columns", "group", "planes",
                                                "activation_bits"};

  TernaryWeights(const Attributes& attributes, const std::vector<Tensor>& arrays)
      : kernels_(int_kernels()), stored_(checked(attributes, arrays)) {
    pack(arrays[1]);
  }

  int64_t rows() const { return stored_.rows; }
  int64_t columns() const { return stored_.columns; }
  int64_t step() const { return trits_ ? kTritRows : 2 * kIntRows; }

  size_t prepared_size(int64_t tokens) const {
    const int64_t room = (tokens + kernels_.tile - 1) / kernels_.tile * kernels_.tile;
    return static_cast<size_t>(room * IntToken(matrix()).size);
  }
  void prepare(const float* a, int64_t begin, int64_t end, void* prepared) const {
    const IntMatrix& w = matrix();
    uint8_t* const to = static_cast<uint8_t*>(prepared);
    if (w.columns == stored_.columns) return kernels_.prepare(w, a, begin, end, to);
    std::vector<float> planes(static_cast<size_t>(w.columns));  // the token of each plane
    const int64_t size = IntToken(w).size;
    for (int64_t token = begin; token < end; ++token) {
      for (int64_t first = 0; first < w.columns; first += w.columns / stored_.planes) {
        std::copy_n(a + token * stored_.columns, stored_.columns, planes.begin() + first);
      }
      kernels_.prepare(w, planes.data(), 0, 1, to + token * size);
    }
  }
  void multiply(const float*, const void* prepared, int64_t tokens, float* y, int64_t stride,
                int64_t begin, int64_t end) const {
    const uint8_t* const from = static_cast<const uint8_t*>(prepared);
    if (trits_) {
      multiply_trits_(trits_->matrix(), from, tokens, y, stride, begin, end);
    } else {
      kernels_.multiply(integers_->matrix(), from, tokens, y, stride, begin, end);
    }
  }

 private:
  // Everything but the scales, whose shape alone is looked at.
  static StoredTrits checked(const Attributes& attributes, const std::vector<Tensor>& arrays) {
    StoredTrits stored{};
    attributes.integer("activation_bits", 8, 8);
    stored.rows = attributes.integer("rows", 1, kMaxSize);
    stored.columns = attributes.integer("columns", 1, kMaxSize);
    stored.group = std::min(attributes.integer("group", 1, kMaxSize), stored.columns);
    stored.planes = static_cast<int>(attributes.integer("planes", 1, 2));
    const Tensor &codes = arrays[0], &scales = arrays[1];
    const int64_t rows = stored.rows, planes = stored.planes, groups = stored.groups();
    attributes.want("codes", codes, {rows, planes * stored.bytes()});
    const std::vector<int64_t>& shape = scales.shape;
    if (shape.size() != 2 || (shape[0] != 1 && shape[0] != rows) || shape[1] != planes * groups) {
      attributes.fail("scales has shape " + text_of(shape) + ", and must have [1 or " +
                      std::to_string(rows) + ", " + std::to_string(planes * groups) + "]");
    }
    stored.scale_rows = shape[0];
    constexpr int64_t kWidest = INT32_MAX / (127 * 2);
    if (stored.group > kWidest) {
      attributes.fail("sums of " + std::to_string(stored.group) + " products do not fit int32; " +
                      "at most " + std::to_string(kWidest) + " columns may share a scale");
    }
    stored.codes = codes.as<uint8_t>();
    const uint8_t* const end = stored.codes + codes.count();
    const uint8_t* const wrong =
        std::find_if(stored.codes, end, [](uint8_t byte) { return byte > kTritsHighest; });
    if (wrong != end) {
      attributes.fail("codes holds " + std::to_string(*wrong) + " in row " +
                      std::to_string((wrong - stored.codes) / codes.shape[1]) +
                      "; five trits are a number up to " + std::to_string(kTritsHighest));
    }
    return stored;
  }

  void pack(const Tensor& scales) {
    std::vector<float> wide;
    if constexpr (kScales == ElementType::kFloat) {
      stored_.scales = scales.as<float>();
    } else {
      wide.resize(static_cast<size_t>(scales.count()));
      hadamard_kernels().widen(scales.as<uint16_t>(), wide.data(), scales.count());
      stored_.scales = wide.data();
    }
    // The tiles of AMX, where they are, want integers.
    if (instructions() == Instructions::kVnni) multiply_trits_ = multiply_trits_vnni();
    if (multiply_trits_ != nullptr) {
      trits_ = std::make_unique<PackedTrits>(stored_);
    } else {
      integers_ = std::make_unique<PackedIntegers>(as_integers(stored_));
    }
    stored_.codes = nullptr;  // the runtime's, and gone from now on
    stored_.scales = nullptr;
  }

  // What tokens are prepared for.
  const IntMatrix& matrix() const { return trits_ ? trits_->matrix().tokens : integers_->matrix(); }

  const IntKernels& kernels_;
  StoredTrits stored_;
  MultiplyTrits multiply_trits_ = nullptr;
  std::unique_ptr<const PackedTrits> trits_;  // one of the two
  std::unique_ptr<const PackedIntegers> integers_;
};

}  // namespace onnxq::ort
