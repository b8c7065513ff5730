// The baseline of the architecture.
#include "entry_descent_source.h"

namespace onnxq {
const EntryDescentKernels* entry_descent_generic() { return &kKernels; }
}  // namespace onnxq
