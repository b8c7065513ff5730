// Products with stored weights on CUDA, as operators of ONNX Runtime: `MatMulCuda<Weights, kType>`
// makes one from what the weights say of themselves:
//
//   struct Weights {
//     static constexpr const char* kName;
//     static constexpr ElementType kArrays[];          // inputs behind the activations
//     static constexpr const char* kAttributes[];      // integers, all there
//     // The struct of <op>_cuda.h. Arrays lie on the device: only their shapes can be checked.
//     static Stored stored(const Attributes&, const Shape& shape, const std::vector<Tensor>&
//     arrays); static constexpr auto kMultiply = onnxq_..._cuda; static constexpr int kSpan; //
//     activation_span of onnxq_matmul
//   };
//
// Nothing is repacked: kernels read the arrays of the file.
#pragma once

#include <string>
#include <vector>

#include "matmul_cuda.h"
#include "matmul_op.h"

namespace onnxq::ort {

#ifdef ONNXQ_CUDA_ON_CPU
constexpr const char* kCuda = nullptr;  // kernels compiled for the CPU, for tests
#else
constexpr const char* kCuda = "CUDAExecutionProvider";
#endif

// What every weight has.
struct Shape {
  int64_t rows, columns;
};

template <class Weights, ElementType kType>
class MatMulCuda {
 public:
  static constexpr const char *kName = Weights::kName, *kProvider = kCuda;
  static constexpr bool kInPlace = false;
  static constexpr MatMulInputs<Weights, kType> kInputs{};
  static constexpr ElementType kOutputs[] = {kType};

  static void infer(const Shapes& shapes) { shapes.last_axis(0, 0, "rows"); }

  MatMulCuda(const Api* api, const KernelInfo* info)
      : attributes_(api, info, kName, Weights::kAttributes) {
    shape_ = {attributes_.integer("rows", 1, kMaxSize - 1),
              attributes_.integer("columns", 1, kMaxSize - 1)};
    call_.rows = shape_.rows;
    call_.columns = shape_.columns;
    call_.is_half = kType == ElementType::kFloat16;
    call_.activation_bits = static_cast<int32_t>(attributes_.integer("activation_bits", 8, 32));
    call_.activation_span = Weights::kSpan;
  }

  void compute(const Context& context) const {
    const Tensor a = context.input(0);
    if (a.shape.empty() || a.shape.back() != shape_.columns) {
      attributes_.fail("A has shape " + text_of(a.shape) +
                       "; its last axis must be columns = " + std::to_string(shape_.columns));
    }
    std::vector<Tensor> arrays;
    for (size_t index = 1; index < kInputs.size(); ++index) arrays.push_back(context.input(index));
    const auto stored = Weights::stored(attributes_, shape_, arrays);
    std::vector<int64_t> sizes = a.shape;
    sizes.back() = shape_.rows;
    onnxq_matmul call = call_;
    call.a = a.data;
    call.y = context.output(0, sizes).data;
    call.tokens = a.count() / shape_.columns;
    const char* const error = Weights::kMultiply(&call, &stored, context.stream());
    if (error != nullptr) attributes_.fail(std::string("on CUDA: ") + error);
  }

 private:
  Attributes attributes_;
  Shape shape_;
  onnxq_matmul call_{};
};

template <class... Weights>
std::vector<const CustomOp*> matmul_cuda_ops_of(const Api* api) {
  std::vector<const CustomOp*> ops;
  (ops.push_back(new Op<MatMulCuda<Weights, ElementType::kFloat>>(api)), ...);
  (ops.push_back(new Op<MatMulCuda<Weights, ElementType::kFloat16>>(api)), ...);
  return ops;
}

}  // namespace onnxq::ort
