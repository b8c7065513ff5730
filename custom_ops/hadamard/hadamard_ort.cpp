// The operator Hadamard for ONNX Runtime: rows are split over the threads of the session.
#include <memory>
#include <string>
#include <vector>

#include "../ort/op.h"
#include "../ort/ops.h"
#include "hadamard.h"
#include "hadamard_cuda.h"
#include "hadamard_node.h"

namespace onnxq::ort {
namespace {

constexpr int64_t kLeast = 16384;  // floats worth a thread of their own

// X, the factor and Y of one element type; Y may lie where X does.
template <ElementType kType>
struct Typed : HadamardNode {
  static constexpr const char *kName = "Hadamard", *kProvider = nullptr;
  static constexpr ElementType kInputs[] = {kType, kType};
  static constexpr ElementType kOutputs[] = {kType};
  static constexpr bool kInPlace = true;

  Typed(const Api* api, const KernelInfo* info)
      : HadamardNode(integer_attribute(api, info, "size")) {}

  static void infer(const Shapes& shapes) { shapes.same(0, 0); }
};

struct HadamardFloat : Typed<ElementType::kFloat> {
  using Typed::Typed;

  void compute(const Context& context) const {
    const Tensor x = context.input(0), factor = context.input(1);
    const HadamardSize size = this->size(x, factor);
    const Tensor y = context.output(0, x.shape);
    const HadamardKernels& kernels = hadamard_kernels();
    context.parallel(x.count() / width(), kLeast / width(), [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(size.factor > 1 ? static_cast<size_t>(width()) : 0);
      kernels.transform(x.as<float>() + begin * width(), y.as<float>() + begin * width(),
                        end - begin, size, factor.as<float>(), scratch.data());
    });
  }
};

// float16 is widened, transformed in float32 and rounded once.
struct HadamardHalf : Typed<ElementType::kFloat16> {
  using Typed::Typed;

  void compute(const Context& context) const {
    const Tensor x = context.input(0), half_factor = context.input(1);
    const HadamardSize size = this->size(x, half_factor);
    const Tensor y = context.output(0, x.shape);
    const HadamardKernels& kernels = hadamard_kernels();
    std::vector<float> factor(static_cast<size_t>(half_factor.count()));
    kernels.widen(half_factor.as<uint16_t>(), factor.data(), half_factor.count());
    context.parallel(x.count() / width(), kLeast / width(), [&](int64_t begin, int64_t end) {
      std::vector<float> row(static_cast<size_t>(width()));
      std::vector<float> scratch(size.factor > 1 ? row.size() : 0);
      for (int64_t at = begin * width(); at < end * width(); at += width()) {
        kernels.widen(x.as<uint16_t>() + at, row.data(), width());
        kernels.transform(row.data(), row.data(), 1, size, factor.data(), scratch.data());
        kernels.narrow(row.data(), y.as<uint16_t>() + at, width());
      }
    });
  }
};

#ifdef ONNXQ_CUDA
template <ElementType kType>
struct HadamardCuda : Typed<kType> {
  static constexpr const char* kProvider = "CUDAExecutionProvider";
  using Typed<kType>::Typed;

  void compute(const Context& context) const {
    const Tensor x = context.input(0), factor = context.input(1);
    const HadamardSize size = this->size(x, factor);
    const Tensor y = context.output(0, x.shape);
    const char* error =
        onnxq_hadamard_cuda(x.data, y.data, x.count() / this->width(), size.factor, size.power,
                            factor.data, kType == ElementType::kFloat16, context.stream());
    if (error != nullptr) throw std::runtime_error(std::string("Hadamard on CUDA: ") + error);
  }
};
#endif

}  // namespace

std::vector<const CustomOp*> hadamard_ops(const Api* api) {
  std::vector<const CustomOp*> ops = {new Op<HadamardFloat>(api), new Op<HadamardHalf>(api)};
#ifdef ONNXQ_CUDA
  ops.push_back(new Op<HadamardCuda<ElementType::kFloat>>(api));
  ops.push_back(new Op<HadamardCuda<ElementType::kFloat16>>(api));
#endif
  return ops;
}

}  // namespace onnxq::ort
