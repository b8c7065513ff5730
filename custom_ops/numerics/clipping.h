// Squared rounding errors of a histogram: see onnxq/numerics/clipping.py for the meaning.
#pragma once

#include <cstdint>

namespace onnxq {

// costs[i] = sum over j of counts[j] * (value_j - rounded_i(value_j))^2 for scale i and zero i.
void rounding_costs(const double* values, const double* counts, int64_t size, const double* scales,
                    const double* zeros, int64_t candidates, int lowest, int highest,
                    double* costs);

}  // namespace onnxq
