// The source of the kernels in viterbi_kernels.h. Included once by each viterbi_*.cpp, after it
// defines ONNXQ_ISA and, in an unnamed namespace, struct Wide: 32 lanes of 16 bits.
#include "viterbi_kernels.h"

namespace onnxq {
namespace {

// How often distances are doubled before they are squared: finer trellises have smaller ones.
constexpr int doublings(int step_bits, int vector) {
  return 2 * step_bits >= 7 * vector ? 2 : 2 * step_bits >= 5 * vector ? 1 : 0;
}

// The winner of kCount branches from `first` on, at node `node` of the tournament.
template <int kCount, class Branch>
[[gnu::always_inline]] inline Wide::Vector play(const Branch& branch, int first, int node,
                                                uint32_t* choices) {
  if constexpr (kCount == 1) {
    return branch(first);
  } else {
    constexpr int kHalf = kCount / 2;
    const Wide::Vector left = play<kHalf>(branch, first, 2 * node, choices);
    const Wide::Vector right = play<kHalf>(branch, first + kHalf, 2 * node + 1, choices);
    choices[node] = Wide::less(right, left);
    return Wide::min(left, right);
  }
}

// The least of the costs `run` apart.
template <int kBranches>
[[gnu::always_inline]] inline Wide::Vector least_of(const uint16_t* from, int64_t run,
                                                    uint32_t* choices) {
  if constexpr (kBranches <= 16) {
    const auto branch = [&](int at) { return Wide::load(from + at * run); };
    return play<kBranches>(branch, 0, 1, choices);
  } else {
    constexpr int kGroups = kBranches / 16;
    uint16_t winners[kGroups * kTrellisLanes];
    for (int group = 0; group < kGroups; ++group) {
      uint32_t inner[16];
      Wide::store(winners + group * kTrellisLanes,
                  least_of<16>(from + group * 16 * run, run, inner));
      // Node n of depth d in a group is node (kGroups + group) 2^d + (n - 2^d) of the whole.
      for (int depth = 0, first = 1; depth < 4; ++depth, first *= 2) {
        for (int place = 0; place < first; ++place) {
          choices[(kGroups + group) * first + place] = inner[first + place];
        }
      }
    }
    return least_of<kGroups>(winners, kTrellisLanes, choices);
  }
}

// Costs that grow by the distances of 32 states to the targets of one step.
template <int kStepBits, int kVector>
struct Distances {
  static constexpr int kDoublings = doublings(kStepBits, kVector);
  Wide::Vector target[kVector];
  const int16_t* values;
  int64_t states;

  Distances(const int16_t* targets, const int16_t* values, int64_t states)
      : values(values), states(states) {
    for (int at = 0; at < kVector; ++at) {
      target[at] = Wide::all(static_cast<uint16_t>(targets[at]));
    }
  }
  [[gnu::always_inline]] Wide::Vector add(Wide::Vector cost, int64_t state) const {
    for (int at = 0; at < kVector; ++at) {
      const Wide::Vector value = Wide::load(values + at * states + state);
      cost = Wide::add(cost, Wide::template square<kDoublings>(value, target[at]));
    }
    return cost;
  }
};

// The costs of the states that follow 32 overlaps.
template <int kStepBits, int kVector>
[[gnu::always_inline]] inline void follow(const TrellisShape& shape, Wide::Vector found,
                                          int64_t overlap,
                                          const Distances<kStepBits, kVector>& distances,
                                          uint16_t* after) {
  const Wide::Spread costs(found);
  for (int part = 0; part < 1 << kStepBits; ++part) {
    const int64_t state = (overlap << kStepBits) + part * kTrellisLanes;
    Wide::store(after + shape.place(state),
                distances.add(costs.template part<kStepBits>(part), state));
  }
}

template <int kStepBits, int kVector>
uint16_t advance(const TrellisShape& shape, const TrellisSteps& step) {
  constexpr int kBranches = 1 << kStepBits;
  const int64_t overlaps = shape.overlaps(), run = overlaps + kTrellisLanes;
  const Wide::Vector floor = Wide::all(step.floor);
  const Distances<kStepBits, kVector> distances(step.targets, step.values, shape.states());
  Wide::Vector least = Wide::all(0xffff);
  uint32_t* choices = step.choices;
  for (int64_t overlap = 0; overlap < overlaps; overlap += kTrellisLanes, choices += kBranches) {
    const Wide::Vector found =
        Wide::subtract(least_of<kBranches>(step.before + overlap, run, choices), floor);
    least = Wide::min(least, found);
    follow<kStepBits, kVector>(shape, found, overlap, distances, step.after);
  }
  return Wide::lowest(least);
}

// 32 overlaps of both steps at a time: what lies between the steps stays in registers.
template <int kStepBits, int kVector>
uint16_t advance_twice(const TrellisShape& shape, const TrellisSteps& step) {
  constexpr int kBranches = 1 << kStepBits;
  const int64_t overlaps = shape.overlaps(), run = overlaps + kTrellisLanes;
  const int64_t both = overlaps >> kStepBits;
  const Wide::Vector floor = Wide::all(step.floor);
  const Distances<kStepBits, kVector> first(step.targets, step.values, shape.states());
  const Distances<kStepBits, kVector> second(step.targets + kVector, step.values, shape.states());
  Wide::Vector least = Wide::all(0xffff);
  uint32_t* later = step.choices + shape.choice_count();
  for (int64_t from = 0; from < both; from += kTrellisLanes) {
    Wide::Spread middle[kBranches];
    for (int branch = 0; branch < kBranches; ++branch) {
      const int64_t overlap = from + branch * both;
      uint32_t* choices = step.choices + overlap / kTrellisLanes * kBranches;
      middle[branch] = Wide::Spread(
          Wide::subtract(least_of<kBranches>(step.before + overlap, run, choices), floor));
    }
    for (int part = 0; part < kBranches; ++part, later += kBranches) {
      const int64_t overlap = (from << kStepBits) + part * kTrellisLanes;
      const auto branch = [&](int at) {
        return first.add(middle[at].template part<kStepBits>(part), overlap + at * overlaps);
      };
      const Wide::Vector found = play<kBranches>(branch, 0, 1, later);
      least = Wide::min(least, found);
      follow<kStepBits, kVector>(shape, found, overlap, second, step.after);
    }
  }
  return Wide::lowest(least);
}

#include "viterbi_shaped_source.h"

ViterbiKernels::Advance advance_of(int step_bits, int vector) {
  switch (10 * vector + step_bits) {
    case 11:
      return advance<1, 1>;
    case 12:
      return advance<2, 1>;
    case 13:
      return advance<3, 1>;
    case 14:
      return advance<4, 1>;
    case 23:
      return advance<3, 2>;
    case 24:
      return advance<4, 2>;
    case 25:
      return advance<5, 2>;
    case 26:
      return advance<6, 2>;
    case 27:
      return advance<7, 2>;
    case 28:
      return advance<8, 2>;
    default:
      return nullptr;
  }
}

ViterbiKernels::Advance advance_twice_of(int step_bits, int vector) {
  switch (10 * vector + step_bits) {
    case 11:
      return advance_twice<1, 1>;
    case 12:
      return advance_twice<2, 1>;
    case 13:
      return advance_twice<3, 1>;
    case 14:
      return advance_twice<4, 1>;
    case 23:
      return advance_twice<3, 2>;
    case 24:
      return advance_twice<4, 2>;
    default:
      return nullptr;
  }
}

ViterbiKernels::AdvanceShaped advance_shaped_of(int step_bits, int vector) {
  switch (10 * vector + step_bits) {
    case 11:
      return advance_shaped<1, 1>;
    case 12:
      return advance_shaped<2, 1>;
    case 13:
      return advance_shaped<3, 1>;
    case 14:
      return advance_shaped<4, 1>;
    case 23:
      return advance_shaped<3, 2>;
    case 24:
      return advance_shaped<4, 2>;
    case 25:
      return advance_shaped<5, 2>;
    case 26:
      return advance_shaped<6, 2>;
    case 27:
      return advance_shaped<7, 2>;
    case 28:
      return advance_shaped<8, 2>;
    default:
      return nullptr;
  }
}

ViterbiKernels::Carry carry_of(int step_bits) {
  constexpr ViterbiKernels::Carry kCarry[] = {carry<1>, carry<2>, carry<3>, carry<4>,
                                              carry<5>, carry<6>, carry<7>, carry<8>};
  return step_bits < 1 || step_bits > 8 ? nullptr : kCarry[step_bits - 1];
}

constexpr ViterbiKernels kViterbiKernels = {ONNXQ_ISA, advance_of, advance_twice_of,
                                            advance_shaped_of, carry_of};

}  // namespace
}  // namespace onnxq
