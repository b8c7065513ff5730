// A node of the operator Hadamard: its attribute and shapes, checked the same way for every element
// type and runtime.
#pragma once

#include <string>

#include "../matmul/node.h"
#include "hadamard.h"

namespace onnxq {

class HadamardNode {
 public:
  // `size`: entries of a run, the attribute.
  explicit HadamardNode(int64_t size) : size_(size) {
    if (size_ < 1) {
      throw InvalidArgument("Hadamard: attribute size is " + std::to_string(size_) +
                            ", and must be at least 1");
    }
  }

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

}  // namespace onnxq
