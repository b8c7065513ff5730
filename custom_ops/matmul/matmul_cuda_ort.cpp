// The operators for matrix products, on CUDA.
#include "matmul_cuda_ort.h"

#include "../ort/ops.h"

namespace onnxq::ort {
namespace {

template <class... Products>
std::vector<const CustomOp*> ops_of(const Api* api, cuda::List<Products...>) {
  std::vector<const CustomOp*> ops;
  (add_matmul_cuda_ops<Products>(api, ops), ...);
  return ops;
}

}  // namespace

std::vector<const CustomOp*> matmul_cuda_ops(const Api* api) {
  return ops_of(api, cuda::Products{});
}

}  // namespace onnxq::ort
