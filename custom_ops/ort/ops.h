// The operators of the library. Each function is in the folder of its operator and makes the tables
// for one runtime; they live as long as the process.
#pragma once

#include <vector>

#include "abi.h"

namespace onnxq::ort {

std::vector<const CustomOp*> hadamard_ops(const Api* api);
std::vector<const CustomOp*> matmul_e8p_ops(const Api* api);
std::vector<const CustomOp*> matmul_codebook_ops(const Api* api);
std::vector<const CustomOp*> matmul_int_ops(const Api* api);
std::vector<const CustomOp*> matmul_ternary_ops(const Api* api);
std::vector<const CustomOp*> matmul_lut_ops(const Api* api);
std::vector<const CustomOp*> matmul_trellis_ops(const Api* api);

// Those of matrix products on CUDA, in a library that has them.
std::vector<const CustomOp*> matmul_cuda_ops(const Api* api);

}  // namespace onnxq::ort
