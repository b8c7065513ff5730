// The operators of onnxq as a plugin of TensorRT needs them: a table, without a word of TensorRT.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../matmul/node.h"

namespace onnxq::tensorrt {

// A node whose attributes and types are known. Mistakes are thrown as `InvalidArgument`.
class Kernel {
 public:
  virtual ~Kernel() = default;
  // Says which input has a shape that does not fit; data may be null.
  virtual void check(const std::vector<Tensor>& inputs) const = 0;
  // Starts Y on `stream`, a cudaStream_t.
  virtual void start(const std::vector<Tensor>& inputs, void* y, void* stream) const = 0;
};

struct Operator {
  const char* name;
  // The type of each input: a is that of Y, float32 or float16; others as matmul_cuda_stored.h
  // says.
  std::string inputs;
  std::vector<const char*> attributes;  // integers, all there
  const char* last_axis;                // the attribute that is the last axis of Y; null: Y is as A
  // `is_half`: Y is float16; `has_halves`: inputs of two possible types are.
  std::unique_ptr<const Kernel> (*kernel)(const Attributes&, bool is_half, bool has_halves);
};

const std::vector<Operator>& operators();

}  // namespace onnxq::tensorrt
