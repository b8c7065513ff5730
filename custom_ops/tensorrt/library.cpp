// The entry points of libonnxq_tensorrt, which TensorRT's registry calls as it loads the library.
#include <memory>

#include "plugin.h"

#define ONNXQ_EXPORT_PLUGINS extern "C" [[gnu::visibility("default")]]

ONNXQ_EXPORT_PLUGINS void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  onnxq::tensorrt::log_to(finder);
}

// The creators of all plugins; they live as long as the library.
ONNXQ_EXPORT_PLUGINS nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using onnxq::tensorrt::Creator;
  static const std::vector<std::unique_ptr<Creator>> creators = [] {
    std::vector<std::unique_ptr<Creator>> made;
    for (const auto& op : onnxq::tensorrt::operators()) {
      made.push_back(std::make_unique<Creator>(op));
    }
    return made;
  }();
  static const std::vector<nvinfer1::IPluginCreatorInterface*> pointers = [] {
    std::vector<nvinfer1::IPluginCreatorInterface*> made;
    for (const auto& creator : creators) made.push_back(creator.get());
    return made;
  }();
  count = static_cast<int32_t>(pointers.size());
  return pointers.data();
}
