// One class for every operator of the table: a plugin of TensorRT, version 3, and its creator.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "operators.h"

namespace onnxq::tensorrt {

constexpr const char *kNamespace = "onnxq", *kVersion = "1";

// A sentence for the user, in TensorRT's log.
void say(const char* sentence) noexcept;
void log_to(nvinfer1::ILoggerFinder* finder) noexcept;

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  // Attributes in the order of the operator's.
  Plugin(const Operator& op, std::vector<int64_t> attributes);

  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t, const nvinfer1::DataType* inputs,
                             int32_t count) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t count,
                          const nvinfer1::DimsExprs*, int32_t, nvinfer1::DimsExprs* outputs,
                          int32_t, nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t at, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 int32_t inputs, int32_t outputs) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t) noexcept override;
  const char* getTimingCacheID() noexcept override { return text_.c_str(); }
  const char* getMetadataString() noexcept override { return text_.c_str(); }

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t count,
                        const nvinfer1::PluginTensorDesc* outputs, int32_t) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc*, const nvinfer1::PluginTensorDesc*,
                  const void* const* inputs, void* const* outputs, void*,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
    return clone();
  }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  std::unique_ptr<const Kernel> kernel(const nvinfer1::DataType* types, int32_t count) const;

  const Operator& op_;
  std::vector<int64_t> attributes_;
  std::string text_;  // the attributes, to be read
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
  std::unique_ptr<const Kernel> kernel_;  // of the shapes that run
  std::vector<Tensor> inputs_;
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const Operator& op);

  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase) noexcept override;

 private:
  const Operator& op_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace onnxq::tensorrt
