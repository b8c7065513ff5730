// The operator Hadamard for ONNX Runtime: rows are split over the threads of the session.
#include <memory>
#include <string>
#include <vector>

#include "../ort/op.h"
#include "../ort/ops.h"
#include "hadamard.h"
#include "hadamard_cuda.h"

namespace onnxq::ort {
namespace {

constexpr int64_t kLeast = 16384;  // floats worth a thread of their own

// Attributes and shapes, checked the same way for every element type and provider.
class Checked {
 public:
  Checked(const Api* api, const KernelInfo* info) : size_(integer_attribute(api, info, "size")) {
    if (size_ < 1) {
      throw InvalidArgument("Hadamard: attribute size is " + std::to_string(size_) +
                            ", and must be at least 1");
    }
  }

 protected:
  HadamardSize size(const Tensor& x, const Tensor& factor) const {
    if (x.shape.empty() || x.shape.back() % size_ != 0) {
      throw InvalidArgument(
          "Hadamard: X has shape " + text_of(x.shape) +
          "; its last axis must be a multiple of size = " + std::to_string(size_));
    }
    const bool square = factor.shape.size() == 2 && factor.shape[0] == factor.shape[1];
    const int64_t order = square ? factor.shape[0] : 0;
    const int64_t power = order > 0 && size_ % order == 0 ? size_ / order : 0;
    if (power == 0 || (power & (power - 1)) != 0) {
      throw InvalidArgument("Hadamard: factor has shape " + text_of(factor.shape) +
                            "; it must be [m, m] with size = " + std::to_string(size_) +
                            " being m times a power of two");
    }
    return {order, power};
  }

  int64_t width() const { return size_; }

 private:
  int64_t size_;
};

// X, the factor and Y of one element type; Y may lie where X does.
template <ElementType kType>
struct Typed : Checked {
  static constexpr const char *kName = "Hadamard", *kProvider = nullptr;
  static constexpr ElementType kInputs[] = {kType, kType};
  static constexpr ElementType kOutputs[] = {kType};
  static constexpr bool kInPlace = true;
  using Checked::Checked;

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
struct HadamardCuda : Typed<ElementType::kFloat> {
  static constexpr const char* kProvider = "CUDAExecutionProvider";
  using Typed::Typed;

  void compute(const Context& context) const {
    const Tensor x = context.input(0), factor = context.input(1);
    const HadamardSize size = this->size(x, factor);
    const Tensor y = context.output(0, x.shape);
    const char* error =
        onnxq_hadamard_cuda(x.as<float>(), y.as<float>(), x.count() / width(), size.factor,
                            size.power, factor.as<float>(), context.stream());
    if (error != nullptr) throw std::runtime_error(std::string("Hadamard on CUDA: ") + error);
  }
};
#endif

}  // namespace

std::vector<const CustomOp*> hadamard_ops(const Api* api) {
  std::vector<const CustomOp*> ops = {new Op<HadamardFloat>(api), new Op<HadamardHalf>(api)};
#ifdef ONNXQ_CUDA
  ops.push_back(new Op<HadamardCuda>(api));
#endif
  return ops;
}

}  // namespace onnxq::ort
