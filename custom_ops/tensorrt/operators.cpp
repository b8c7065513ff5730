#include "operators.h"

#include <iterator>

#include "../hadamard/hadamard_cuda.h"
#include "../hadamard/hadamard_node.h"
#include "../matmul/matmul_cuda_stored.h"

namespace onnxq::tensorrt {
namespace {

template <class Product>
class ProductKernel final : public Kernel {
 public:
  ProductKernel(const Attributes& attributes, bool is_half, bool has_halves)
      : product_(attributes, is_half, has_halves) {}

  void check(const std::vector<Tensor>& inputs) const override {
    product_.shape_of_result(inputs.front().shape);
    product_.stored(arrays(inputs));
  }

  void start(const std::vector<Tensor>& inputs, void* y, void* stream) const override {
    product_.start(inputs.front(), arrays(inputs), y, stream);
  }

 private:
  static std::vector<Tensor> arrays(const std::vector<Tensor>& inputs) {
    return {inputs.begin() + 1, inputs.end()};
  }

  cuda::StoredProduct<Product> product_;
};

class HadamardKernel final : public Kernel {
 public:
  HadamardKernel(const Attributes& attributes, bool is_half, bool)
      : node_(attributes.integer("size", 1, kMaxSize)), is_half_(is_half) {}

  void check(const std::vector<Tensor>& inputs) const override { node_.size(inputs[0], inputs[1]); }

  void start(const std::vector<Tensor>& inputs, void* y, void* stream) const override {
    const Tensor &x = inputs[0], &factor = inputs[1];
    const HadamardSize size = node_.size(x, factor);
    const char* const error = onnxq_hadamard_cuda(x.data, y, x.count() / node_.width(), size.factor,
                                                  size.power, factor.data, is_half_, stream);
    if (error != nullptr) throw InvalidArgument(std::string("Hadamard: on CUDA: ") + error);
  }

 private:
  HadamardNode node_;
  bool is_half_;
};

template <class Made>
std::unique_ptr<const Kernel> make(const Attributes& attributes, bool is_half, bool has_halves) {
  return std::make_unique<const Made>(attributes, is_half, has_halves);
}

template <class Product>
Operator product() {
  return {Product::kName,
          std::string("a") + Product::kArrays,
          {std::begin(Product::kAttributes), std::end(Product::kAttributes)},
          "rows",
          make<ProductKernel<Product>>};
}

template <class... Products>
std::vector<Operator> products(cuda::List<Products...>) {
  return {product<Products>()...};
}

}  // namespace

const std::vector<Operator>& operators() {
  static const std::vector<Operator> all = [] {
    std::vector<Operator> made = products(cuda::Products{});
    made.push_back({"Hadamard", "aa", {"size"}, nullptr, make<HadamardKernel>});
    return made;
  }();
  return all;
}

}  // namespace onnxq::tensorrt
