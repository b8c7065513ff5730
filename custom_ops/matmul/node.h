// A node of a graph as every runtime shows it: tensors, integer attributes, and what is wrong with
// them, as sentences.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace onnxq {

// What is wrong with a model or its inputs, as a sentence.
struct InvalidArgument : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::string text_of(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    text += (axis ? ", " : "") + std::to_string(shape[axis]);
  }
  return text + "]";
}

struct Tensor {
  void* data;
  std::vector<int64_t> shape;

  template <class Element>
  Element* as() const {
    return static_cast<Element*>(data);
  }
  int64_t count() const {
    int64_t product = 1;
    for (int64_t size : shape) product *= size;
    return product;
  }
};

// The integer attributes of a node, by name.
class Attributes {
 public:
  Attributes(const char* op, std::map<std::string, int64_t> values)
      : op_(op), values_(std::move(values)) {}

  // An integer in [lowest, highest].
  int64_t integer(const char* name, int64_t lowest, int64_t highest) const {
    const auto found = values_.find(name);
    if (found == values_.end()) fail("attribute " + std::string(name) + " is missing");
    const int64_t value = found->second;
    if (value < lowest || value > highest) {
      fail("attribute " + std::string(name) + " is " + std::to_string(value) +
           ", and must be from " + std::to_string(lowest) + " to " + std::to_string(highest));
    }
    return value;
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw InvalidArgument(op_ + ": " + what);
  }

  // Says which array is wrong when its shape is not the one wanted.
  void want(const char* array, const Tensor& tensor, const std::vector<int64_t>& shape) const {
    if (tensor.shape != shape) {
      fail(std::string(array) + " has shape " + text_of(tensor.shape) + ", and must have " +
           text_of(shape));
    }
  }

 private:
  std::string op_;
  std::map<std::string, int64_t> values_;
};

constexpr int64_t kMaxSize = int64_t{1} << 31;  // of rows, and of columns

}  // namespace onnxq
