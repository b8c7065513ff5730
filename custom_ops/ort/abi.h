// The part of ONNX Runtime's C ABI that custom operators need, written by hand: the wheels ship no
// headers, and the ABI only ever grows at its end. Names are those of onnxruntime_c_api.h without
// "Ort"; the indices into its table are the same in every API from 21 to 29.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxq::ort {

constexpr uint32_t kApiVersion = 21;  // ONNX Runtime 1.21: the oldest that is asked for

struct Status;
struct KernelInfo;
struct KernelContext;
struct ShapeContext;
struct Value;
struct TensorInfo;
struct CustomOpDomain;
struct SessionOptions;
struct Attribute;

enum class ErrorCode : int { kFail = 1, kInvalidArgument = 2, kRuntimeException = 6 };

enum class ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kDouble = 11,
  kBfloat16 = 16,
};

enum class AttributeType : int { kInteger = 1 };
enum class MemoryType : int { kCpuInput = -2, kCpuOutput = -1, kDefault = 0 };
enum class Arity : int { kRequired = 0, kOptional = 1, kVariadic = 2 };

struct Api {
  void (*entry[275])();
};

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// One function of the table, called with the table first.
template <int kIndex, class Signature>
struct Entry;

template <int kIndex, class Result, class... Arguments>
struct Entry<kIndex, Result(Arguments...)> {
  static_assert(kIndex < static_cast<int>(sizeof(Api) / sizeof(void (*)())), "beyond the table");
  Result operator()(const Api* api, Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(api->entry[kIndex])(arguments...);
  }
};

// clang-format off
inline constexpr Entry<0, Status*(ErrorCode, const char*)> CreateStatus;
inline constexpr Entry<2, const char*(const Status*)> GetErrorMessage;
inline constexpr Entry<26, Status*(const char*, CustomOpDomain**)> CreateCustomOpDomain;
struct CustomOp;
inline constexpr Entry<27, Status*(CustomOpDomain*, const CustomOp*)> CustomOpDomain_Add;
inline constexpr Entry<28, Status*(SessionOptions*, CustomOpDomain*)> AddCustomOpDomain;
inline constexpr Entry<51, Status*(Value*, void**)> GetTensorMutableData;
inline constexpr Entry<57, Status*(TensorInfo**)> CreateTensorTypeAndShapeInfo;
inline constexpr Entry<58, Status*(TensorInfo*, ElementType)> SetTensorElementType;
inline constexpr Entry<59, Status*(TensorInfo*, const int64_t*, size_t)> SetDimensions;
inline constexpr Entry<60, Status*(const TensorInfo*, ElementType*)> GetTensorElementType;
inline constexpr Entry<61, Status*(const TensorInfo*, size_t*)> GetDimensionsCount;
inline constexpr Entry<62, Status*(const TensorInfo*, int64_t*, size_t)> GetDimensions;
inline constexpr Entry<63, Status*(const TensorInfo*, const char**, size_t)> GetSymbolicDimensions;
inline constexpr Entry<65, Status*(const Value*, TensorInfo**)> GetTensorTypeAndShape;
inline constexpr Entry<85, Status*(const KernelInfo*, const char*, float*)> KernelInfoGetAttribute_float;
inline constexpr Entry<86, Status*(const KernelInfo*, const char*, int64_t*)> KernelInfoGetAttribute_int64;
inline constexpr Entry<88, Status*(const KernelContext*, size_t*)> KernelContext_GetInputCount;
inline constexpr Entry<90, Status*(const KernelContext*, size_t, const Value**)> KernelContext_GetInput;
inline constexpr Entry<91, Status*(KernelContext*, size_t, const int64_t*, size_t, Value**)> KernelContext_GetOutput;
inline constexpr Entry<93, void(Status*)> ReleaseStatus;
inline constexpr Entry<99, void(TensorInfo*)> ReleaseTensorTypeAndShapeInfo;
inline constexpr Entry<101, void(CustomOpDomain*)> ReleaseCustomOpDomain;
inline constexpr Entry<193, Status*(const KernelContext*, void**)> KernelContext_GetGPUComputeStream;
inline constexpr Entry<249, Status*(const KernelInfo*, size_t, int*, const Value**)> KernelInfoGetConstantInput_tensor;
inline constexpr Entry<268, Status*(const ShapeContext*, size_t, TensorInfo**)> ShapeInferContext_GetInputTypeShape;
inline constexpr Entry<269, Status*(const ShapeContext*, const char*, const Attribute**)> ShapeInferContext_GetAttribute;
inline constexpr Entry<270, Status*(const ShapeContext*, size_t, const TensorInfo*)> ShapeInferContext_SetOutputTypeShape;
inline constexpr Entry<271, Status*(TensorInfo*, const char**, size_t)> SetSymbolicDimensions;
inline constexpr Entry<272, Status*(const Attribute*, AttributeType, void*, size_t, size_t*)> ReadOpAttr;
inline constexpr Entry<274, Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)> KernelContext_ParallelFor;
// clang-format on

// What ONNX Runtime asks of an operator. `version` says how much of it is there.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);  // null: CPU
  ElementType (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void* kernel, KernelContext*);
  void (*KernelDestroy)(void* kernel);
  Arity (*GetInputCharacteristic)(const CustomOp*, size_t);
  Arity (*GetOutputCharacteristic)(const CustomOp*, size_t);
  MemoryType (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, ShapeContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  // Pairs of input and output that may share memory; both arrays are released by the operator.
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

static_assert(offsetof(CustomOp, CreateKernel) == sizeof(void*));
static_assert(offsetof(CustomOp, CreateKernelV2) == 17 * sizeof(void*));
static_assert(sizeof(CustomOp) == 26 * sizeof(void*));

}  // namespace onnxq::ort
