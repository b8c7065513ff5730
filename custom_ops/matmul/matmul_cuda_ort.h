// Products with stored weights on CUDA, as operators of ONNX Runtime: `MatMulCuda<Product, kType,
// kHalves>` makes one from what the product says of itself (matmul_cuda_stored.h).
#pragma once

#include <string>
#include <vector>

#include "matmul_cuda_stored.h"
#include "matmul_op.h"

namespace onnxq::ort {

#ifdef ONNXQ_CUDA_ON_CPU
constexpr const char* kCuda = nullptr;  // kernels compiled for the CPU, for tests
#else
constexpr const char* kCuda = "CUDAExecutionProvider";
#endif

// The type of an array that a product says; `halves` of those that it may choose from.
constexpr ElementType type_of_array(char kind, bool halves) {
  switch (kind) {
    case 'u':
      return ElementType::kUint8;
    case 'i':
      return ElementType::kInt8;
    case 's':
      return halves ? ElementType::kFloat16 : ElementType::kFloat;
    case 't':
      return halves ? ElementType::kFloat16 : ElementType::kInt8;
    default:
      return ElementType::kFloat16;
  }
}

template <class Product, ElementType kType, bool kHalves>
struct MatMulCudaInputs {
  constexpr ElementType operator[](size_t index) const {
    return index == 0 ? kType : type_of_array(Product::kArrays[index - 1], kHalves);
  }
  constexpr size_t size() const { return std::size(Product::kArrays); }  // its end stands for A
};

template <class Product, ElementType kType, bool kHalves>
class MatMulCuda {
 public:
  static constexpr const char *kName = Product::kName, *kProvider = kCuda;
  static constexpr bool kInPlace = false;
  static constexpr MatMulCudaInputs<Product, kType, kHalves> kInputs{};
  static constexpr ElementType kOutputs[] = {kType};

  static void infer(const Shapes& shapes) { shapes.last_axis(0, 0, "rows"); }

  MatMulCuda(const Api* api, const KernelInfo* info)
      : product_(attributes_of(api, info, kName, Product::kAttributes),
                 kType == ElementType::kFloat16, kHalves) {}

  void compute(const Context& context) const {
    const Tensor a = context.input(0);
    const std::vector<int64_t> shape = product_.shape_of_result(a.shape);
    std::vector<Tensor> arrays;
    for (size_t index = 1; index < kInputs.size(); ++index) arrays.push_back(context.input(index));
    product_.start(a, arrays, context.output(0, shape).data, context.stream());
  }

 private:
  cuda::StoredProduct<Product> product_;
};

// Products whose arrays may have either of two types are two operators for each type of A.
template <class Product>
void add_matmul_cuda_ops(const Api* api, std::vector<const CustomOp*>& ops) {
  ops.push_back(new Op<MatMulCuda<Product, ElementType::kFloat, false>>(api));
  ops.push_back(new Op<MatMulCuda<Product, ElementType::kFloat16, false>>(api));
  if constexpr (cuda::has_choice(Product::kArrays)) {
    ops.push_back(new Op<MatMulCuda<Product, ElementType::kFloat, true>>(api));
    ops.push_back(new Op<MatMulCuda<Product, ElementType::kFloat16, true>>(api));
  }
}

}  // namespace onnxq::ort
