#include "../matmul/matmul_cuda_kernels.h"
#include "matmul_codebook_decode.h"

const char* onnxq_matmul_codebook_cuda(const onnxq_matmul* call, const onnxq_codebook* weight,
                                       void* stream) {
  using namespace onnxq::cuda;
  const int dimension = weight->dimension, bits = weight->code_bits;
  if (dimension != 1 && dimension != 2 && dimension != 4 && dimension != 8) {
    return "entries of codebooks have 1, 2, 4 or 8 numbers";
  }
  if (bits != 4 && bits != 6 && bits != 8 && bits != 12 && bits != 16) {
    return "codes of codebooks have 4, 6, 8, 12 or 16 bits";
  }
  if (weight->books < 1 || call->columns % dimension != 0 || weight->group % dimension != 0 ||
      weight->block_columns % dimension != 0) {
    return "columns, groups and blocks must be whole numbers of entries";
  }
  if (weight->group < 1 || weight->block_rows < 1 || weight->block_columns < 1) {
    return "a group or a block is empty";
  }
  const auto multiply = [&](auto runs) {
    const CodebookWeight<decltype(runs)::value> decoded(*weight, *call);
    return call->tokens > kFew ? multiply_many_tokens(*call, decoded, stream)
                               : multiply_few_tokens(*call, decoded, stream);
  };
  switch (dimension) {
    case 1:
      return multiply(Bits<1>{});
    case 2:
      return multiply(Bits<2>{});
    case 4:
      return multiply(Bits<4>{});
    default:
      return multiply(Bits<8>{});
  }
}
