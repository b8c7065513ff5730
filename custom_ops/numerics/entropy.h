// The clipping range with the least Kullback-Leibler divergence: see onnxq/numerics/entropy.py for
// the meaning.
#pragma once

#include <cstdint>

namespace onnxq {

// Divergence of each window [half - reach, half + reach) cut down to [first, last), for
// reach = 1 ... half, of a histogram of 2 * half bins. Windows of fewer than `levels` bins, and
// such that hold nothing, get infinity. `divergence` has `half` elements.
void entropy_sweep(const int64_t* bins, int64_t half, int64_t first, int64_t last, int levels,
                   int threads, double* divergence);

}  // namespace onnxq
