// Ranges and histograms of activations: see onnxq/numerics/histogram.py for the meaning.
#pragma once

#include <cstdint>

namespace onnxq {

// Smallest and largest of count > 0 values; false when one of them is NaN or infinite.
bool find_range(const float* values, int64_t count, int threads, float* low, float* high);

// Adds values to sign-magnitude bins of width 1 / inverse_width. `half_bins` bins lie on each side
// of 0: value v > 0 goes to bin half_bins + floor(v / width), v < 0 to half_bins - 1 -
// floor(-v / width). Zeros are counted apart. Every |v| / width must be below half_bins.
void add_to_bins(const float* values, int64_t count, float inverse_width, int half_bins,
                 int threads, int64_t* bins, int64_t* zeros);

}  // namespace onnxq
