// The baseline of the architecture, and the choice among the others.
#define ONNXQ_ISA "generic"
#include "tile_kernels.h"

namespace onnxq {

const TileKernels* tile_kernels_generic() { return &kKernels; }

const TileKernels& tile_kernels() {
  static const TileKernels* const chosen = [] {
    if (const TileKernels* kernels = tile_kernels_avx512()) return kernels;
    if (const TileKernels* kernels = tile_kernels_avx2()) return kernels;
    return tile_kernels_generic();
  }();
  return *chosen;
}

}  // namespace onnxq
