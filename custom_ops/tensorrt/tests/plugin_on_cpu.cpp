// A plugin taken through the life that TensorRT gives it, on a machine without TensorRT or a GPU:
// created from fields, asked for types, shapes and formats, configured, written down, created again
// from what was written, and run. Kernels are those of cuda_on_cpu; memory is the host's.
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "../plugin.h"

using namespace nvinfer1;

extern "C" void setLoggerFinder(ILoggerFinder* finder);
extern "C" IPluginCreatorInterface* const* getCreators(int32_t& count);

namespace {

// Sizes of dimensions as TensorRT shows them; -1 is one that is not known.
class Size final : public IDimensionExpr, public apiv::VDimensionExpr {
 public:
  explicit Size(int64_t value) : value_(value) { mImpl = this; }
  bool isConstant() const override { return value_ >= 0; }
  int64_t getConstantValue() const override { return value_; }
  bool isSizeTensor() const override { return false; }

 private:
  int64_t value_;
};

class Sizes final : public IExprBuilder, public apiv::VExprBuilder {
 public:
  Sizes() { mImpl = this; }
  const IDimensionExpr* constant(int64_t value) override { return &made_.emplace_back(value); }
  const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&,
                                  const IDimensionExpr&) override {
    return nullptr;
  }
  const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&,
                                          const IDimensionExpr&) override {
    return nullptr;
  }

 private:
  std::deque<Size> made_;
};

class Log final : public ILogger, public ILoggerFinder {
 public:
  void log(Severity, const char* sentence) noexcept override { text = sentence; }
  ILogger* findLogger() override { return this; }
  std::string text;
};

Log said;

IPluginCreatorV3One* creator_of(const char* name) {
  int32_t count = 0;
  IPluginCreatorInterface* const* const all = getCreators(count);
  for (int32_t at = 0; at < count; ++at) {
    auto* const creator = static_cast<IPluginCreatorV3One*>(all[at]);
    if (std::strcmp(creator->getPluginName(), name) == 0) return creator;
  }
  return nullptr;
}

template <class Capability>
Capability* capability(IPluginV3* plugin, PluginCapabilityType type) {
  return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}

}  // namespace

extern "C" {

struct plugin_tensor {
  void* data;
  int64_t dims[8];
  int32_t rank, type;
};

// Runs plugin `name`; the shape of Y comes back in `y`. The stage that failed: 0 for none, and -1
// where there is no such plugin; `sentence` is what was said then.
[[gnu::visibility("default")]] int plugin_run(const char* name, int attributes,
                                              const char* const* names, const int32_t* values,
                                              int inputs, const plugin_tensor* tensors,
                                              plugin_tensor* y, const char** sentence) {
  setLoggerFinder(&said);
  said.text.clear();
  *sentence = "";
  const auto failed = [&](int stage) {
    *sentence = said.text.c_str();
    return stage;
  };
  IPluginCreatorV3One* const creator = creator_of(name);
  if (creator == nullptr) return -1;
  std::vector<PluginField> fields;
  for (int at = 0; at < attributes; ++at) {
    fields.emplace_back(names[at], values + at, PluginFieldType::kINT32, 1);
  }
  const PluginFieldCollection given{attributes, fields.data()};
  std::unique_ptr<IPluginV3> made(creator->createPlugin("node", &given, TensorRTPhase::kBUILD));
  if (!made) return failed(1);
  const std::unique_ptr<IPluginV3> plugin(made->clone());
  made.reset();

  auto* const build = capability<IPluginV3OneBuild>(plugin.get(), PluginCapabilityType::kBUILD);
  std::vector<DataType> types;
  std::vector<DynamicPluginTensorDesc> all(static_cast<size_t>(inputs) + 1);
  std::vector<DimsExprs> known(static_cast<size_t>(inputs));
  Sizes sizes;
  for (int at = 0; at < inputs; ++at) {
    const plugin_tensor& tensor = tensors[at];
    PluginTensorDesc& desc = all[static_cast<size_t>(at)].desc;
    types.push_back(static_cast<DataType>(tensor.type));
    desc.type = types.back();
    desc.dims.nbDims = known[static_cast<size_t>(at)].nbDims = tensor.rank;
    for (int axis = 0; axis < tensor.rank; ++axis) {
      const bool is_free = at == 0 && axis + 1 < tensor.rank;
      desc.dims.d[axis] = tensor.dims[axis];
      known[static_cast<size_t>(at)].d[axis] = sizes.constant(is_free ? -1 : tensor.dims[axis]);
    }
    desc.format = TensorFormat::kLINEAR;
    all[static_cast<size_t>(at)].max = desc.dims;
  }
  DataType type{};
  if (build->getNbOutputs() != 1 ||
      build->getOutputDataTypes(&type, 1, types.data(), inputs) != 0) {
    return failed(2);
  }
  DimsExprs shape{};
  if (build->getOutputShapes(known.data(), inputs, nullptr, 0, &shape, 1, sizes) != 0) {
    return failed(3);
  }
  y->rank = shape.nbDims;
  y->type = static_cast<int32_t>(type);
  DynamicPluginTensorDesc& result = all.back();
  result.desc.dims.nbDims = shape.nbDims;
  for (int axis = 0; axis < shape.nbDims; ++axis) {
    const IDimensionExpr& size = *shape.d[axis];
    y->dims[axis] = size.isConstant() ? size.getConstantValue() : -1;
    result.desc.dims.d[axis] = size.isConstant() ? y->dims[axis] : tensors[0].dims[axis];
  }
  result.desc.type = type;
  result.desc.format = TensorFormat::kLINEAR;
  for (int at = 0; at <= inputs; ++at) {
    if (!build->supportsFormatCombination(at, all.data(), inputs, 1)) return failed(4);
    DynamicPluginTensorDesc& tensor = all[static_cast<size_t>(at)];
    tensor.desc.format = TensorFormat::kCHW32;
    if (build->supportsFormatCombination(at, all.data(), inputs, 1)) return failed(5);
    tensor.desc.format = TensorFormat::kLINEAR;
  }
  if (build->configurePlugin(all.data(), inputs, &result, 1) != 0) return failed(6);

  auto* const built = capability<IPluginV3OneRuntime>(plugin.get(), PluginCapabilityType::kRUNTIME);
  const std::unique_ptr<IPluginV3> read(
      creator->createPlugin("node", built->getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
  if (!read) return failed(7);
  auto* const runtime = capability<IPluginV3OneRuntime>(read.get(), PluginCapabilityType::kRUNTIME);
  const std::unique_ptr<IPluginV3> attached(runtime->attachToContext(nullptr));
  auto* const runs =
      capability<IPluginV3OneRuntime>(attached.get(), PluginCapabilityType::kRUNTIME);
  std::vector<PluginTensorDesc> descs;
  std::vector<const void*> data;
  for (int at = 0; at < inputs; ++at) {
    descs.push_back(all[static_cast<size_t>(at)].desc);
    data.push_back(tensors[at].data);
  }
  if (runs->onShapeChange(descs.data(), inputs, &result.desc, 1) != 0) return failed(8);
  void* outputs[] = {y->data};
  if (runs->enqueue(descs.data(), &result.desc, data.data(), outputs, nullptr, nullptr) != 0) {
    return failed(9);
  }
  return 0;
}
}
