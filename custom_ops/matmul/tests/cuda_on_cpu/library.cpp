// A library for ONNX Runtime with the operators on CUDA alone, their kernels compiled for the CPU.
#include "../../../ort/op.h"
#include "../../../ort/ops.h"

extern "C" onnxq::ort::Status* RegisterCustomOps(onnxq::ort::SessionOptions* options,
                                                 const onnxq::ort::ApiBase* base) {
  using namespace onnxq::ort;
  const Api* api = base->GetApi(kApiVersion);
  return guarded(api, [&] {
    static CustomOpDomain* const domain = [&] {
      CustomOpDomain* made = nullptr;
      check(CreateCustomOpDomain(api, "onnxq", &made));
      for (const CustomOp* op : matmul_cuda_ops(api)) check(CustomOpDomain_Add(api, made, op));
      return made;
    }();
    check(AddCustomOpDomain(api, options, domain));
  });
}
