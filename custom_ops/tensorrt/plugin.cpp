#include "plugin.h"

#include <atomic>
#include <cstdio>
#include <map>
#include <optional>
#include <utility>

namespace onnxq::tensorrt {

using namespace nvinfer1;

namespace {

std::atomic<ILoggerFinder*> logger_finder{nullptr};

// No exception leaves the library: what it says goes to TensorRT's log.
template <class Result, class Work>
Result guarded(Result failed, const Work& work) noexcept {
  try {
    return work();
  } catch (const std::exception& error) {
    say((std::string("onnxq.") + error.what()).c_str());
    return failed;
  }
}

template <class Work>
int32_t status(const Work& work) noexcept {
  return guarded(int32_t{1}, [&] {
    work();
    return int32_t{0};
  });
}

Tensor tensor_of(const Dims& dims) {
  return {nullptr, {dims.d, dims.d + (dims.nbDims < 0 ? 0 : dims.nbDims)}};
}

// Whether an input may have a type; codes are bytes, and TensorRT has INT8 where ONNX has uint8.
bool fits(char kind, DataType type) {
  switch (kind) {
    case 'u':
      return type == DataType::kINT8 || type == DataType::kUINT8;
    case 'i':
      return type == DataType::kINT8;
    case 'h':
      return type == DataType::kHALF;
    case 't':
      return type == DataType::kINT8 || type == DataType::kHALF;
    default:
      return type == DataType::kFLOAT || type == DataType::kHALF;
  }
}

const char* allowed(char kind) {
  switch (kind) {
    case 'u':
    case 'i':
      return "int8";
    case 'h':
      return "float16";
    case 't':
      return "int8 or float16";
    default:
      return "float32 or float16";
  }
}

// An integer that a field holds, in whichever width the parser has it.
std::optional<int64_t> integer_of(const PluginField& field) {
  if (field.data == nullptr || field.length != 1) return std::nullopt;
  if (field.type == PluginFieldType::kINT64) return *static_cast<const int64_t*>(field.data);
  if (field.type == PluginFieldType::kINT32) return *static_cast<const int32_t*>(field.data);
  return std::nullopt;
}

}  // namespace

void log_to(ILoggerFinder* finder) noexcept { logger_finder = finder; }

void say(const char* sentence) noexcept {
  ILoggerFinder* const finder = logger_finder;
  ILogger* const logger = finder == nullptr ? nullptr : finder->findLogger();
  if (logger != nullptr) {
    logger->log(ILogger::Severity::kERROR, sentence);
  } else {
    std::fprintf(stderr, "%s\n", sentence);
  }
}

Plugin::Plugin(const Operator& op, std::vector<int64_t> attributes)
    : op_(op), attributes_(std::move(attributes)) {
  for (size_t at = 0; at < attributes_.size(); ++at) {
    text_ +=
        (at ? ", " : "") + std::string(op_.attributes[at]) + "=" + std::to_string(attributes_[at]);
    fields_.emplace_back(op_.attributes[at], &attributes_[at], PluginFieldType::kINT64, 1);
  }
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE:
      return static_cast<IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD:
      return static_cast<IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME:
      return static_cast<IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

IPluginV3* Plugin::clone() noexcept {
  return guarded<IPluginV3*>(nullptr, [&] { return new Plugin(op_, attributes_); });
}

std::unique_ptr<const Kernel> Plugin::kernel(const DataType* types, int32_t count) const {
  std::map<std::string, int64_t> values;
  for (size_t at = 0; at < attributes_.size(); ++at) values[op_.attributes[at]] = attributes_[at];
  const Attributes attributes(op_.name, std::move(values));
  if (count != static_cast<int32_t>(op_.inputs.size())) {
    attributes.fail("there are " + std::to_string(count) + " inputs, and must be " +
                    std::to_string(op_.inputs.size()));
  }
  bool has_halves = false;
  for (int32_t at = 0; at < count; ++at) {
    const char kind = op_.inputs[static_cast<size_t>(at)];
    if (!fits(kind, types[at]) || (kind == 'a' && types[at] != types[0])) {
      attributes.fail("input " + std::to_string(at) + " must be " +
                      (at > 0 && kind == 'a' ? "of the type of input 0" : allowed(kind)));
    }
    if ((kind == 's' || kind == 't') && types[at] == DataType::kHALF) has_halves = true;
  }
  return op_.kernel(attributes, types[0] == DataType::kHALF, has_halves);
}

int32_t Plugin::getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs,
                                   int32_t count) const noexcept {
  return status([&] {
    kernel(inputs, count);
    outputs[0] = inputs[0];
  });
}

int32_t Plugin::getOutputShapes(const DimsExprs* inputs, int32_t, const DimsExprs*, int32_t,
                                DimsExprs* outputs, int32_t, IExprBuilder& builder) noexcept {
  return status([&] {
    if (inputs[0].nbDims < 1) throw InvalidArgument(std::string(op_.name) + ": A is a scalar");
    outputs[0] = inputs[0];
    for (size_t at = 0; op_.last_axis != nullptr && at < attributes_.size(); ++at) {
      if (std::string(op_.attributes[at]) == op_.last_axis) {
        outputs[0].d[inputs[0].nbDims - 1] = builder.constant(attributes_[at]);
      }
    }
  });
}

bool Plugin::supportsFormatCombination(int32_t at, const DynamicPluginTensorDesc* tensors,
                                       int32_t inputs, int32_t) noexcept {
  const PluginTensorDesc& tensor = tensors[at].desc;
  if (tensor.format != TensorFormat::kLINEAR || inputs != static_cast<int32_t>(op_.inputs.size())) {
    return false;
  }
  const char kind = at < inputs ? op_.inputs[static_cast<size_t>(at)] : 'a';
  return fits(kind, tensor.type) && (kind != 'a' || tensor.type == tensors[0].desc.type);
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t count,
                                const DynamicPluginTensorDesc*, int32_t) noexcept {
  return status([&] {
    std::vector<DataType> types;
    std::vector<Tensor> tensors;
    for (int32_t at = 0; at < count; ++at) {
      types.push_back(inputs[at].desc.type);
      tensors.push_back(tensor_of(inputs[at].max));
    }
    kernel(types.data(), count)->check(tensors);
  });
}

int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, int32_t count,
                              const PluginTensorDesc*, int32_t) noexcept {
  return status([&] {
    std::vector<DataType> types;
    std::vector<Tensor> tensors;
    for (int32_t at = 0; at < count; ++at) {
      types.push_back(inputs[at].type);
      tensors.push_back(tensor_of(inputs[at].dims));
    }
    kernel_ = kernel(types.data(), count);
    kernel_->check(tensors);
    inputs_ = std::move(tensors);
  });
}

int32_t Plugin::enqueue(const PluginTensorDesc*, const PluginTensorDesc*, const void* const* inputs,
                        void* const* outputs, void*, cudaStream_t stream) noexcept {
  return status([&] {
    if (kernel_ == nullptr) throw InvalidArgument(std::string(op_.name) + ": has no shapes yet");
    for (size_t at = 0; at < inputs_.size(); ++at) inputs_[at].data = const_cast<void*>(inputs[at]);
    kernel_->start(inputs_, outputs[0], stream);
  });
}

const PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept { return &collection_; }

Creator::Creator(const Operator& op) : op_(op) {
  for (const char* name : op_.attributes) {
    fields_.emplace_back(name, nullptr, PluginFieldType::kINT64, 1);
  }
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

IPluginV3* Creator::createPlugin(const char* name, const PluginFieldCollection* fields,
                                 TensorRTPhase) noexcept {
  return guarded<IPluginV3*>(nullptr, [&] {
    std::map<std::string, int64_t> found;
    for (int32_t at = 0; fields != nullptr && at < fields->nbFields; ++at) {
      const std::optional<int64_t> value = integer_of(fields->fields[at]);
      if (value) found[fields->fields[at].name] = *value;
    }
    std::vector<int64_t> attributes;
    for (const char* wanted : op_.attributes) {
      const auto value = found.find(wanted);
      if (value == found.end()) {
        throw InvalidArgument(std::string(op_.name) + ": node " + (name ? name : "") +
                              " has no integer attribute " + wanted);
      }
      attributes.push_back(value->second);
    }
    return new Plugin(op_, std::move(attributes));
  });
}

}  // namespace onnxq::tensorrt
