// The inner loops of the search through a trellis (see viterbi.h): one step from the costs of all
// states to those one step on. One instruction set per file (viterbi_*.cpp) compiles the same
// source (viterbi_source.h); all do the same integer operations: results are equal bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxq {

constexpr int kTrellisLanes = 32;   // overlaps that a kernel has side by side
constexpr int kShapedColumns = 16;  // of a row, at most, where errors are carried

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

// What the errors e = t - v of one step carry to one later column (see Shaping in viterbi.h), from
// the states before the step to those of it. Corrections are numbers of 8 bits that wrap around, a
// plane of all states, placed, for each column.
struct CarriedStep {
  const uint32_t* choices;  // of the step, where branches are at most 16
  const uint8_t* winners;   // [overlaps]: the branches that won, where they are more
  const uint8_t* values;    // [states]: what the values of a state carry, taken off
  uint8_t target;           // what the targets carry
  const uint8_t* given;     // what steps before carried; null in the first step of a row
  uint8_t* carried;
};

// A step whose errors are not alike.
struct ShapedStep {
  TrellisSteps step;        // of one step
  const int16_t* weights;   // [vector]
  const int16_t* feedback;  // [vector], `stride` apart: from the last value to those before it
  int stride;
  const int16_t* units;  // [vector], of corrections
  const uint8_t* given;  // [vector][cost_count]: corrections; null in the first step of a row
  uint8_t* winners;      // [overlaps]: written where branches are more than 16
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
  // The same where errors are carried on; there for every trellis that `advance` is there for.
  using AdvanceShaped = uint16_t (*)(const TrellisShape&, const ShapedStep&);
  AdvanceShaped (*advance_shaped)(int step_bits, int vector);
  using Carry = void (*)(const TrellisShape&, const CarriedStep&);
  Carry (*carry)(int step_bits);
};

const ViterbiKernels& viterbi_kernels();          // the best one this CPU has
const ViterbiKernels* viterbi_kernels_generic();  // the baseline of the architecture
const ViterbiKernels* viterbi_kernels_avx2();     // null where not compiled or the CPU lacks it
const ViterbiKernels* viterbi_kernels_avx512();

}  // namespace onnxq
