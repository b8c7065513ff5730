// The entry point of libonnxq_ops: puts every operator of onnxq into the domain "onnxq" of a
// session. One library and one domain, because a session takes a domain once.
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "op.h"
#include "ops.h"

namespace onnxq::ort {
namespace {

// A domain for each runtime in the process; it lives as long as the process, as its sessions may.
CustomOpDomain* domain_of(const Api* api) {
  static std::mutex mutex;
  static std::map<const Api*, CustomOpDomain*> domains;
  const std::lock_guard<std::mutex> lock(mutex);
  CustomOpDomain*& domain = domains[api];
  if (domain == nullptr) {
    CustomOpDomain* made = nullptr;
    check(CreateCustomOpDomain(api, "onnxq", &made));
#ifdef ONNXQ_CUDA
    for (const CustomOp* op : matmul_cuda_ops(api)) check(CustomOpDomain_Add(api, made, op));
#endif
    for (const CustomOp* op : hadamard_ops(api)) check(CustomOpDomain_Add(api, made, op));
    for (const CustomOp* op : matmul_e8p_ops(api)) check(CustomOpDomain_Add(api, made, op));
    for (const CustomOp* op : matmul_codebook_ops(api)) check(CustomOpDomain_Add(api, made, op));
    for (const CustomOp* op : matmul_int_ops(api)) check(CustomOpDomain_Add(api, made, op));
    for (const CustomOp* op : matmul_ternary_ops(api)) check(CustomOpDomain_Add(api, made, op));
    for (const CustomOp* op : matmul_lut_ops(api)) check(CustomOpDomain_Add(api, made, op));
    for (const CustomOp* op : matmul_trellis_ops(api)) check(CustomOpDomain_Add(api, made, op));
    domain = made;
  }
  return domain;
}

}  // namespace
}  // namespace onnxq::ort

extern "C" [[gnu::visibility("default")]] onnxq::ort::Status* RegisterCustomOps(
    onnxq::ort::SessionOptions* options, const onnxq::ort::ApiBase* base) {
  using namespace onnxq::ort;
  const Api* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    const Api* first = base->GetApi(1);
    return guarded(first, [&] {
      throw InvalidArgument("the operators of onnxq need ONNX Runtime 1." +
                            std::to_string(kApiVersion) + " or later, and this is " +
                            base->GetVersionString());
    });
  }
  return guarded(api, [&] { check(AddCustomOpDomain(api, options, domain_of(api))); });
}
