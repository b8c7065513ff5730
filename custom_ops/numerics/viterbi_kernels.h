// The inner loops of the search through a trellis (see viterbi.h): one step from the costs of all
// states to those one step on. One instruction set per file (viterbi_*.cpp) compiles the same
// source (viterbi_source.h); all do the same integer operations: results are equal bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxq {

constexpr int kTrellisLanes = 32;  // overlaps that a kernel has side by side

// States s of `state_bits` bits; the next state is (s << step_bits | new) mod 2^state_bits. An
// overlap is what two neighbours share: the low state_bits - step_bits bits of s.
struct TrellisShape {
  int state_bits, step_bits;
  int vector;  // values of a state
  int64_t states() const { return int64_t{1} << state_bits; }
  int64_t overlaps() const { return int64_t{1} << (state_bits - step_bits); }
  int branches() const { return 1 << step_bits; }
  // Costs lie in runs of one value of the leading bits, with a gap after each, so that the runs,
  // which are read side by side, do not all map to the same lines of the cache.
  int64_t place(int64_t state) const {
    return state + (state >> (state_bits - step_bits)) * kTrellisLanes;
  }
  int64_t cost_count() const { return states() + branches() * kTrellisLanes; }
  int64_t choice_count() const { return states() / kTrellisLanes; }
};

// Costs are uint16 that saturate. The squared distance of a target w to a value v is
// (2^d (v - w))^2 / 2^15, all in saturating int16.
struct TrellisSteps {
  const uint16_t* before;  // costs of all states, placed
  uint16_t floor;          // taken off every cost
  const int16_t* values;   // [vector][states]
  const int16_t* targets;  // [steps][vector]
  uint16_t* after;
  // [steps][overlaps / 32][branches]: bit `lane` of word n says that of the two sides of node n of
  // the tournament of the branches (node 1 the final, 2n and 2n + 1 the sides of n) the right one
  // won.
  uint32_t* choices;
};

struct ViterbiKernels {
  const char* name;
  // Gives the least cost before the distances of the last step.
  using Advance = uint16_t (*)(const TrellisShape&, const TrellisSteps&);
  // One step; null when no such trellis is compiled.
  Advance (*advance)(int step_bits, int vector);
  // Two steps as one, the same results in less time; null when not compiled. An overlap of both
  // steps needs five bits.
  Advance (*advance_twice)(int step_bits, int vector);
};

const ViterbiKernels& viterbi_kernels();          // the best one this CPU has
const ViterbiKernels* viterbi_kernels_generic();  // the baseline of the architecture
const ViterbiKernels* viterbi_kernels_avx2();     // null where not compiled or the CPU lacks it
const ViterbiKernels* viterbi_kernels_avx512();

}  // namespace onnxq
