// The path through a bitshift trellis whose values lie nearest to a sequence of targets: see
// onnxq/numerics/trellis.py for the meaning.
#pragma once

#include <cstddef>
#include <cstdint>

#include "viterbi_kernels.h"

namespace onnxq {

struct Trellis {
  TrellisShape shape;
  const int16_t* values;  // [vector][states]
  int64_t length;         // steps of a sequence, which closes to a ring; even
  int64_t window;         // steps before and after the joint that choose it; even
};

// For each of `sequences` rows of targets [length][vector]: its states [length], of which each is
// (the one before << step_bits | new) mod 2^state_bits, and the first so follows the last.
// False where memory ran out.
bool find_paths(const Trellis&, const int16_t* targets, int64_t sequences, uint16_t* states,
                int threads, const ViterbiKernels&);

}  // namespace onnxq
