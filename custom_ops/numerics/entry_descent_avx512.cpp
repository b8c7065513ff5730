// AVX-512.
#include "entry_descent.h"

#if defined(__AVX512F__)
#include "entry_descent_source.h"

namespace onnxq {
const EntryDescentKernels* entry_descent_avx512() { return &kKernels; }
}  // namespace onnxq
#else
namespace onnxq {
const EntryDescentKernels* entry_descent_avx512() { return nullptr; }
}  // namespace onnxq
#endif
