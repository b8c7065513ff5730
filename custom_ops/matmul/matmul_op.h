// Y = A W^T with W in a format of ours, as an operator of ONNX Runtime: `matmul_ops<Weights>` makes
// one for float32 and one for float16 activations (widened, computed in float32, rounded once) from
// what the weights say of themselves:
//
//   struct Weights {
//     static constexpr const char* kName;
//     static constexpr ElementType kArrays[];          // inputs behind the activations
//     static constexpr const char* kAttributes[];      // integers, all there
//     Weights(const Attributes&, const std::vector<Tensor>& arrays);  // checked, then repacked
//     int64_t rows() const, columns() const;           // W is [rows, columns]
//     int64_t step() const;                            // parts of rows begin at multiples of it
//     size_t prepared_size(int64_t tokens) const;      // bytes; 0 when nothing is prepared
//     void prepare(const float* a, int64_t begin, int64_t end, void* prepared) const;
//     // Or, where a token is prepared in parts that are worth a thread each:
//     int64_t prepared_items(int64_t tokens) const;
//     void prepare(const float* a, int64_t tokens, int64_t begin, int64_t end, void*) const;
//     void multiply(const float* a, const void* prepared, int64_t tokens, float* y, int64_t stride,
//                   int64_t begin, int64_t end) const; // y[token * stride + row], rows [begin,
//                   end)
//   };
//
// Weights are repacked once, as the session is created. Arrays that are no constants of the graph
// (in the branch of an If) are repacked in every call: slow, and right.
#pragma once

#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../hadamard/hadamard.h"
#include "../ort/op.h"

namespace onnxq::ort {

// The integer attributes of a node; they outlive the creation of its kernel.
template <size_t kCount>
Attributes attributes_of(const Api* api, const KernelInfo* info, const char* op,
                         const char* const (&names)[kCount]) {
  std::map<std::string, int64_t> values;
  for (const char* name : names) values[name] = integer_attribute(api, info, name);
  return Attributes(op, std::move(values));
}

constexpr int64_t kPartProducts = 1 << 17;  // products worth a thread of their own
constexpr int64_t kPartFloats = 1 << 13;    // activations worth a thread of their own

// Memory for what is prepared, at the start of a cache line.
class Prepared {
 public:
  explicit Prepared(size_t size) {
    if (size == 0) return;
    memory_.reset(new char[size + kLine]);  // left as it is: no zeros are written
    const uintptr_t at = reinterpret_cast<uintptr_t>(memory_.get());
    data_ = reinterpret_cast<void*>((at + kLine - 1) / kLine * kLine);
  }
  void* data() const { return data_; }

 private:
  static constexpr uintptr_t kLine = 64;
  std::unique_ptr<char[]> memory_;
  void* data_ = nullptr;
};

// The types of A and of the arrays behind it.
template <class Weights, ElementType kType>
struct MatMulInputs {
  constexpr ElementType operator[](size_t index) const {
    return index == 0 ? kType : Weights::kArrays[index - 1];
  }
  constexpr size_t size() const { return std::size(Weights::kArrays) + 1; }
};

template <class Weights, ElementType kType>
class MatMul {
 public:
  static constexpr const char *kName = Weights::kName, *kProvider = nullptr;
  static constexpr bool kInPlace = false;
  static constexpr size_t kArrayCount = std::size(Weights::kArrays);
  static constexpr MatMulInputs<Weights, kType> kInputs{};
  static constexpr ElementType kOutputs[] = {kType};

  static void infer(const Shapes& shapes) { shapes.last_axis(0, 0, "rows"); }

  MatMul(const Api* api, const KernelInfo* info)
      : attributes_(attributes_of(api, info, kName, Weights::kAttributes)) {
    std::vector<Tensor> arrays;
    for (size_t index = 1; index <= kArrayCount; ++index) {
      int is_constant = 0;
      const Value* value = nullptr;
      check(KernelInfoGetConstantInput_tensor(api, info, index, &is_constant, &value));
      if (is_constant == 0) break;
      arrays.push_back(tensor_of(api, value));
    }
    if (arrays.size() == kArrayCount) weights_ = std::make_unique<Weights>(attributes_, arrays);
  }

  void compute(const Context& context) const {
    if (weights_) return run(context, *weights_);
    std::vector<Tensor> arrays;
    for (size_t index = 1; index <= kArrayCount; ++index) arrays.push_back(context.input(index));
    run(context, Weights(attributes_, arrays));
  }

 private:
  void run(const Context& context, const Weights& weights) const {
    const Tensor a = context.input(0);
    if (a.shape.empty() || a.shape.back() != weights.columns()) {
      attributes_.fail("A has shape " + text_of(a.shape) +
                       "; its last axis must be columns = " + std::to_string(weights.columns()));
    }
    const int64_t tokens = a.count() / weights.columns();
    std::vector<int64_t> shape = a.shape;
    shape.back() = weights.rows();
    const Tensor y = context.output(0, shape);
    if (tokens == 0) return;
    if constexpr (kType == ElementType::kFloat) {
      multiply(context, weights, a.as<float>(), tokens, y.as<float>());
    } else {
      const HadamardKernels& convert = hadamard_kernels();
      std::vector<float> wide(static_cast<size_t>(a.count()));
      std::vector<float> result(static_cast<size_t>(y.count()));
      convert.widen(a.as<uint16_t>(), wide.data(), a.count());
      multiply(context, weights, wide.data(), tokens, result.data());
      convert.narrow(result.data(), y.as<uint16_t>(), y.count());
    }
  }

  static void multiply(const Context& context, const Weights& weights, const float* a,
                       int64_t tokens, float* y) {
    const int64_t rows = weights.rows(), columns = weights.columns(), step = weights.step();
    Prepared prepared(weights.prepared_size(tokens));
    void* const data = prepared.data();
    if (data != nullptr) prepare(context, weights, a, tokens, data, 0);
    const int64_t steps = (rows + step - 1) / step;
    context.parallel(steps, kPartProducts / (step * columns * tokens),
                     [&](int64_t begin, int64_t end) {
                       const int64_t last = end * step < rows ? end * step : rows;
                       weights.multiply(a, data, tokens, y, rows, begin * step, last);
                     });
  }

  // The first where the weights have prepared_items, for an int is an int sooner than a long.
  template <class W>
  static auto prepare(const Context& context, const W& weights, const float* a, int64_t tokens,
                      void* data, int) -> decltype(weights.prepared_items(tokens), void()) {
    context.parallel(weights.prepared_items(tokens), 1, [&](int64_t begin, int64_t end) {
      weights.prepare(a, tokens, begin, end, data);
    });
  }
  template <class W>
  static void prepare(const Context& context, const W& weights, const float* a, int64_t tokens,
                      void* data, long) {
    context.parallel(tokens, kPartFloats / weights.columns(),
                     [&](int64_t begin, int64_t end) { weights.prepare(a, begin, end, data); });
  }

  Attributes attributes_;
  std::unique_ptr<const Weights> weights_;
};

template <class Weights>
std::vector<const CustomOp*> matmul_ops(const Api* api) {
  return {new Op<MatMul<Weights, ElementType::kFloat>>(api),
          new Op<MatMul<Weights, ElementType::kFloat16>>(api)};
}

}  // namespace onnxq::ort
