// The path through a bitshift trellis whose values lie nearest to a sequence of targets: see
// onnxq/numerics/trellis.py for the meaning.
#pragma once

#include <cstddef>
#include <cstdint>

#include "viterbi_kernels.h"

namespace onnxq {

// What errors cost where they are not all alike: with e the errors of one row of `columns`, as time
// runs in the kernel, last column first,
//
//     cost = sum over columns c of (weights[c] / 2^13)^2 (e_c + sum over l > c of
//                                                         feedback[l][c] / 2^13 e_l)^2.
//
// Every path carries the sums that its own errors make, so a state whose costs depend on more of
// the past than the state knows takes what the best path into it did (per-survivor processing).
// The sums are numbers of 8 bits that wrap around, multiples of a unit.
struct Shaping {
  int columns;              // of a row: a whole number of steps, at most kShapedColumns
  const int16_t* weights;   // [columns]
  const int16_t* feedback;  // [columns][columns], below the diagonal
  const int16_t* units;     // [columns], in units of targets and values: 1 to 258
};

struct Trellis {
  TrellisShape shape;
  const int16_t* values;             // [vector][states]
  int64_t length;                    // steps of a sequence, which closes to a ring; even
  int64_t window;                    // steps before and after the joint that choose it; even
  const Shaping* shaping = nullptr;  // all errors cost the same when null
};

// For each of `sequences` rows of targets [length][vector]: its states [length], of which each is
// (the one before << step_bits | new) mod 2^state_bits, and the first so follows the last.
// False where memory ran out.
bool find_paths(const Trellis&, const int16_t* targets, int64_t sequences, uint16_t* states,
                int threads, const ViterbiKernels&);

}  // namespace onnxq
