// The source of the kernels in viterbi_kernels.h. Included once by each viterbi_*.cpp, after it
// defines ONNXQ_ISA and, in an unnamed namespace, struct Wide: 32 lanes of 16 bits.
#include "viterbi_kernels.h"

namespace onnxq {
namespace {

// How often distances are doubled before they are squared: finer trellises have smaller ones.
constexpr int doublings(int step_bits, int vector) {
  return 2 * step_bits >= 7 * vector ? 2 : 2 * step_bits >= 5 * vector ? 1 : 0;
}

// The winner of branches [first, first + kCount) at node `node` of the tournament.
template <int kCount>
[[gnu::always_inline]] inline Wide::Vector play(const uint16_t* from, int64_t run, int node,
                                                uint32_t* choices) {
  if constexpr (kCount == 1) {
    return Wide::load(from);
  } else {
    constexpr int kHalf = kCount / 2;
    const Wide::Vector left = play<kHalf>(from, run, 2 * node, choices);
    const Wide::Vector right = play<kHalf>(from + kHalf * run, run, 2 * node + 1, choices);
    choices[node] = Wide::less(right, left);
    return Wide::min(left, right);
  }
}

template <int kBranches>
[[gnu::always_inline]] inline Wide::Vector best(const uint16_t* from, int64_t run,
                                                uint32_t* choices) {
  if constexpr (kBranches <= 16) {
    return play<kBranches>(from, run, 1, choices);
  } else {
    constexpr int kGroups = kBranches / 16;
    uint16_t winners[kGroups * kTrellisLanes];
    for (int group = 0; group < kGroups; ++group) {
      uint32_t inner[16];
      Wide::store(winners + group * kTrellisLanes, play<16>(from + group * 16 * run, run, 1, inner));
      // Node n of depth d in a group is node (kGroups + group) 2^d + (n - 2^d) of the whole.
      for (int depth = 0, first = 1; depth < 4; ++depth, first *= 2) {
        for (int place = 0; place < first; ++place) {
          choices[(kGroups + group) * first + place] = inner[first + place];
        }
      }
    }
    return play<kGroups>(winners, kTrellisLanes, 1, choices);
  }
}

template <int kStepBits, int kVector>
uint16_t advance(const TrellisShape& shape, const TrellisStep& step) {
  constexpr int kBranches = 1 << kStepBits;
  constexpr int kDoublings = doublings(kStepBits, kVector);
  const int64_t overlaps = shape.overlaps(), states = shape.states();
  const int64_t run = overlaps + kTrellisLanes;
  const Wide::Vector floor = Wide::all(step.floor);
  Wide::Vector target[kVector];
  for (int at = 0; at < kVector; ++at) {
    target[at] = Wide::all(static_cast<uint16_t>(step.targets[at]));
  }
  Wide::Vector least = Wide::all(0xffff);
  uint32_t* choices = step.choices;
  for (int64_t overlap = 0; overlap < overlaps; overlap += kTrellisLanes, choices += kBranches) {
    const Wide::Vector found = best<kBranches>(step.before + overlap, run, choices);
    const Wide::Spread costs(Wide::subtract(found, floor));
    least = Wide::min(least, costs.all);
    const int64_t first = overlap << kStepBits;
    const int16_t* values = step.values + first;
    for (int part = 0; part < kBranches; ++part) {
      const int64_t state = first + part * kTrellisLanes;
      Wide::Vector cost = costs.template part<kStepBits>(part);
      for (int at = 0; at < kVector; ++at) {
        const Wide::Vector value = Wide::load(values + at * states + part * kTrellisLanes);
        cost = Wide::add(cost, Wide::template square<kDoublings>(value, target[at]));
      }
      Wide::store(step.after + shape.place(state), cost);
    }
  }
  return Wide::lowest(least);
}

ViterbiKernels::Advance advance_of(int step_bits, int vector) {
  switch (10 * vector + step_bits) {
    case 11: return advance<1, 1>;
    case 12: return advance<2, 1>;
    case 13: return advance<3, 1>;
    case 14: return advance<4, 1>;
    case 23: return advance<3, 2>;
    case 24: return advance<4, 2>;
    case 25: return advance<5, 2>;
    case 26: return advance<6, 2>;
    case 27: return advance<7, 2>;
    case 28: return advance<8, 2>;
    default: return nullptr;
  }
}

constexpr ViterbiKernels kViterbiKernels = {ONNXQ_ISA, advance_of};

}  // namespace
}  // namespace onnxq
