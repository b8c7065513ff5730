// AVX2 and FMA.
#include "entry_descent.h"

#if defined(__AVX2__) && defined(__FMA__)
#include "entry_descent_source.h"

namespace onnxq {
const EntryDescentKernels* entry_descent_avx2() { return &kKernels; }
}  // namespace onnxq
#else
namespace onnxq {
const EntryDescentKernels* entry_descent_avx2() { return nullptr; }
}  // namespace onnxq
#endif
