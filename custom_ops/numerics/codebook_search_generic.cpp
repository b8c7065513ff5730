// Compiled for the baseline of the architecture.
#include "codebook_search.h"

#define ONNXQ_ISA "generic"
#include "codebook_search_kernels.h"

const onnxq::SearchKernels* onnxq::search_kernels_generic() { return &kKernels; }
