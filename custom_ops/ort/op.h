// An operator as a class: `Op<Kernel>` is the table that ONNX Runtime reads, made from what the
// kernel class says of itself:
//
//   struct Kernel {
//     static constexpr const char* kName, * kProvider;            // null provider: CPU
//     static constexpr ElementType kInputs[], kOutputs[];
//     static constexpr bool kInPlace;                              // output 0 may be input 0
//     static void infer(const Shapes&);                            // shapes of the outputs
//     Kernel(const Api*, const KernelInfo*);                       // attributes, checked
//     void compute(const Context&) const;                          // called by many threads
//   };
//
// Inside, mistakes are exceptions; `guarded` turns each into an OrtStatus, so that none crosses
// the ABI.
#pragma once

#include <atomic>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <new>
#include <string>
#include <vector>

#include "../matmul/node.h"
#include "abi.h"

namespace onnxq::ort {

using onnxq::Attributes;
using onnxq::InvalidArgument;
using onnxq::Tensor;

// A status that ONNX Runtime gave, on its way back to it.
struct Failure {
  Status* status;
};

inline void check(Status* status) {
  if (status != nullptr) throw Failure{status};
}

template <class Work>
Status* guarded(const Api* api, const Work& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const InvalidArgument& error) {
    return CreateStatus(api, ErrorCode::kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return CreateStatus(api, ErrorCode::kRuntimeException, error.what());
  } catch (...) {
    return CreateStatus(api, ErrorCode::kFail, "unknown failure in an operator of onnxq");
  }
}

inline int64_t integer_attribute(const Api* api, const KernelInfo* info, const char* name) {
  int64_t value = 0;
  check(KernelInfoGetAttribute_int64(api, info, name, &value));
  return value;
}

// The shape of a tensor; empty for a scalar.
inline std::vector<int64_t> dimensions(const Api* api, const TensorInfo* info) {
  size_t rank = 0;
  check(GetDimensionsCount(api, info, &rank));
  std::vector<int64_t> sizes(rank);
  check(GetDimensions(api, info, sizes.data(), rank));
  return sizes;
}

// Shape information that is to be given back.
struct Owned {
  const Api* api;
  TensorInfo* info;
  ~Owned() { ReleaseTensorTypeAndShapeInfo(api, info); }
};

// A tensor as the runtime holds it; what it points to is the runtime's.
inline Tensor tensor_of(const Api* api, const Value* value) {
  TensorInfo* info = nullptr;
  check(GetTensorTypeAndShape(api, value, &info));
  const Owned owned{api, info};
  void* data = nullptr;
  check(GetTensorMutableData(api, const_cast<Value*>(value), &data));
  return {data, dimensions(api, info)};
}

// One call of a kernel: its tensors, and the threads of the session.
class Context {
 public:
  Context(const Api* api, KernelContext* context) : api_(api), context_(context) {}

  Tensor input(size_t index) const {
    const Value* value = nullptr;
    check(KernelContext_GetInput(api_, context_, index, &value));
    return tensor_of(api_, value);
  }

  Tensor output(size_t index, const std::vector<int64_t>& shape) const {
    Value* value = nullptr;
    check(KernelContext_GetOutput(api_, context_, index, shape.data(), shape.size(), &value));
    void* data = nullptr;
    check(GetTensorMutableData(api_, value, &data));
    return {data, shape};
  }

  void* stream() const {
    void* stream = nullptr;
    check(KernelContext_GetGPUComputeStream(api_, context_, &stream));
    return stream;
  }

  // Calls work(begin, end) for contiguous parts of [0, count), on the threads of the session; a
  // part has at least `least` items where there are so many. What work throws is thrown here.
  template <class Work>
  void parallel(int64_t count, int64_t least, const Work& work) const {
    constexpr int64_t kParts = 64;
    const int64_t most = count / (least < 1 ? 1 : least);
    const int64_t parts = most < 1 ? 1 : (most < kParts ? most : kParts);
    if (parts == 1) return work(int64_t{0}, count);
    Shared<Work> shared{work, count, parts, std::vector<std::exception_ptr>(parts)};
    check(KernelContext_ParallelFor(api_, context_, &Shared<Work>::run, static_cast<size_t>(parts),
                                    0, &shared));
    for (const std::exception_ptr& error : shared.errors) {
      if (error) std::rethrow_exception(error);
    }
  }

 private:
  template <class Work>
  struct Shared {
    const Work& work;
    int64_t count, parts;
    std::vector<std::exception_ptr> errors;  // one for each part

    static void run(void* self, size_t index) noexcept {
      Shared& shared = *static_cast<Shared*>(self);
      const int64_t part = static_cast<int64_t>(index);
      try {
        shared.work(shared.count * part / shared.parts, shared.count * (part + 1) / shared.parts);
      } catch (...) {
        shared.errors[index] = std::current_exception();
      }
    }
  };

  const Api* api_;
  KernelContext* context_;
};

// What is known of the shapes as a model is loaded.
class Shapes {
 public:
  Shapes(const Api* api, ShapeContext* context) : api_(api), context_(context) {}

  // Output `output` has the type and shape of input `input`, symbols and all.
  void same(size_t input, size_t output) const { give(input, output, nullptr); }

  // The same but for the last axis, which is as long as the integer attribute `attribute` says.
  void last_axis(size_t input, size_t output, const char* attribute) const {
    const Attribute* value = nullptr;
    check(ShapeInferContext_GetAttribute(api_, context_, attribute, &value));
    int64_t size = 0;
    size_t read = 0;
    check(ReadOpAttr(api_, value, AttributeType::kInteger, &size, sizeof(size), &read));
    give(input, output, &size);
  }

 private:
  void give(size_t input, size_t output, const int64_t* last) const {
    TensorInfo* from = nullptr;
    check(ShapeInferContext_GetInputTypeShape(api_, context_, input, &from));
    std::vector<int64_t> sizes = dimensions(api_, from);
    if (sizes.empty()) return;
    std::vector<const char*> names(sizes.size());
    check(GetSymbolicDimensions(api_, from, names.data(), names.size()));
    if (last != nullptr) {
      sizes.back() = *last;
      names.back() = "";
    }
    // A size without number or name would come out as the number -1, which a Reshape to this shape
    // takes for its own -1: it gets a name of its own.
    std::vector<std::string> made(sizes.size());
    for (size_t axis = 0; axis < sizes.size(); ++axis) {
      if (sizes[axis] >= 0 || (names[axis] != nullptr && *names[axis] != '\0')) continue;
      static std::atomic<uint64_t> count{0};
      made[axis] = "onnxq_unknown_" + std::to_string(count++);
      names[axis] = made[axis].c_str();
    }
    ElementType type = ElementType::kUndefined;
    check(GetTensorElementType(api_, from, &type));
    TensorInfo* info = nullptr;
    check(CreateTensorTypeAndShapeInfo(api_, &info));
    const Owned owned{api_, info};
    check(SetTensorElementType(api_, info, type));
    check(SetDimensions(api_, info, sizes.data(), sizes.size()));
    check(SetSymbolicDimensions(api_, info, names.data(), names.size()));
    check(ShapeInferContext_SetOutputTypeShape(api_, context_, output, info));
  }

  const Api* api_;
  ShapeContext* context_;
};

template <class Kernel>
struct Op : CustomOp {
  // The kernel with what it needs to report.
  struct State {
    const Api* api;
    Kernel kernel;
  };

  // The api of the runtime that infers shapes comes with no call: it is kept here.
  const Api* api;

  explicit Op(const Api* table) : CustomOp{}, api(table) {
    version = kApiVersion;
    GetName = [](const CustomOp*) { return Kernel::kName; };
    GetExecutionProviderType = [](const CustomOp*) { return Kernel::kProvider; };
    GetInputType = [](const CustomOp*, size_t index) { return Kernel::kInputs[index]; };
    GetInputTypeCount = [](const CustomOp*) { return std::size(Kernel::kInputs); };
    GetOutputType = [](const CustomOp*, size_t index) { return Kernel::kOutputs[index]; };
    GetOutputTypeCount = [](const CustomOp*) { return std::size(Kernel::kOutputs); };
    GetInputCharacteristic = [](const CustomOp*, size_t) { return Arity::kRequired; };
    GetOutputCharacteristic = [](const CustomOp*, size_t) { return Arity::kRequired; };
    GetInputMemoryType = [](const CustomOp*, size_t) { return MemoryType::kDefault; };
    GetVariadicInputMinArity = [](const CustomOp*) { return 0; };
    GetVariadicInputHomogeneity = [](const CustomOp*) { return 0; };
    GetVariadicOutputMinArity = [](const CustomOp*) { return 0; };
    GetVariadicOutputHomogeneity = [](const CustomOp*) { return 0; };
    GetStartVersion = [](const CustomOp*) { return 1; };
    GetEndVersion = [](const CustomOp*) { return 1; };
    CreateKernelV2 = create;
    KernelComputeV2 = compute;
    KernelDestroy = [](void* kernel) { delete static_cast<State*>(kernel); };
    InferOutputShapeFn = infer;
    if constexpr (Kernel::kInPlace) {
      GetMayInplace = in_place;
      ReleaseMayInplace = [](int* inputs, int* outputs) {
        std::free(inputs);
        std::free(outputs);
      };
    }
  }

 private:
  static Status* create(const CustomOp*, const Api* api, const KernelInfo* info, void** kernel) {
    return guarded(api, [&] { *kernel = new State{api, Kernel(api, info)}; });
  }

  static Status* compute(void* kernel, KernelContext* context) {
    const State& state = *static_cast<const State*>(kernel);
    return guarded(state.api, [&] { state.kernel.compute(Context(state.api, context)); });
  }

  static Status* infer(const CustomOp* op, ShapeContext* context) {
    const Api* api = static_cast<const Op*>(op)->api;
    return guarded(api, [&] { Kernel::infer(Shapes(api, context)); });
  }

  static size_t in_place(int** inputs, int** outputs) {
    *inputs = static_cast<int*>(std::calloc(1, sizeof(int)));
    *outputs = static_cast<int*>(std::calloc(1, sizeof(int)));
    return *inputs != nullptr && *outputs != nullptr ? 1 : 0;
  }
};

}  // namespace onnxq::ort
