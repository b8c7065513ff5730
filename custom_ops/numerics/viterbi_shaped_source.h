// One step of the search where errors are carried on: a part of viterbi_source.h, which includes it
// inside its namespace once for each instruction set.

// The numbers of one plane at the branches that won at 32 overlaps.
template <int kCount>
[[gnu::always_inline]] inline Wide::Bytes won(const uint8_t* plane, int64_t run, int first,
                                              int node, const uint32_t* choices) {
  if constexpr (kCount == 1) {
    return Wide::load_bytes(plane + first * run);
  } else {
    constexpr int kHalf = kCount / 2;
    const Wide::Bytes left = won<kHalf>(plane, run, first, 2 * node, choices);
    const Wide::Bytes right = won<kHalf>(plane, run, first + kHalf, 2 * node + 1, choices);
    return Wide::select(choices[node], right, left);
  }
}

// The same with the branches named where they are many.
template <int kBranches>
[[gnu::always_inline]] inline Wide::Bytes won(const uint8_t* plane, int64_t run,
                                              const uint32_t* choices, const uint8_t* winners) {
  if constexpr (kBranches <= 16) {
    return won<kBranches>(plane, run, 0, 1, choices);
  } else {
    uint8_t lanes[kTrellisLanes];
    for (int lane = 0; lane < kTrellisLanes; ++lane)
      lanes[lane] = plane[winners[lane] * run + lane];
    return Wide::load_bytes(lanes);
  }
}

// Names the branches that won at 32 overlaps.
template <int kBranches>
void name_winners(const uint32_t* choices, uint8_t* winners) {
  for (int lane = 0; lane < kTrellisLanes; ++lane) {
    int node = 1;
    while (node < kBranches) node = 2 * node + static_cast<int>(choices[node] >> lane & 1);
    winners[lane] = static_cast<uint8_t>(node - kBranches);
  }
}

template <int kStepBits>
void carry(const TrellisShape& shape, const CarriedStep& step) {
  constexpr int kBranches = 1 << kStepBits;
  const int64_t overlaps = shape.overlaps(), run = overlaps + kTrellisLanes;
  const Wide::Bytes target = Wide::all_bytes(step.target);
  uint8_t lanes[kTrellisLanes];
  Wide::store_bytes(lanes, target);
  const uint32_t* choices = step.choices;
  for (int64_t overlap = 0; overlap < overlaps; overlap += kTrellisLanes, choices += kBranches) {
    if (step.given != nullptr) {
      const Wide::Bytes given =
          won<kBranches>(step.given + overlap, run, choices, step.winners + overlap);
      Wide::store_bytes(lanes, Wide::add_bytes(given, target));
    }
    for (int part = 0; part < kBranches; ++part) {
      const int64_t state = (overlap << kStepBits) + part * kTrellisLanes;
      Wide::store_bytes(step.carried + shape.place(state),
                        Wide::subtract_bytes(Wide::spread_bytes<kStepBits>(lanes, part),
                                             Wide::load_bytes(step.values + state)));
    }
  }
}

[[gnu::always_inline]] inline Wide::Vector of_number(int16_t number) {
  return Wide::all(static_cast<uint16_t>(number));
}

[[gnu::always_inline]] inline Wide::Vector doubled(Wide::Vector value, int times) {
  for (int time = 0; time < times; ++time) value = Wide::add_signed(value, value);
  return value;
}

// Costs that grow by (w (e + correction))^2 for every value of a step, the last one first.
template <int kStepBits, int kVector>
[[gnu::always_inline]] inline Wide::Vector shaped_cost(const TrellisShape& shape,
                                                       const ShapedStep& shaped, int64_t state,
                                                       Wide::Vector* corrections,
                                                       Wide::Vector cost) {
  constexpr int kDoublings = doublings(kStepBits, kVector);
  for (int at = kVector; at-- > 0;) {
    const int16_t* values = shaped.step.values + at * shape.states() + state;
    const Wide::Vector error =
        Wide::subtract_signed(of_number(shaped.step.targets[at]), Wide::load(values));
    for (int to = 0; to < at; ++to) {
      const Wide::Vector factor = of_number(shaped.feedback[at * shaped.stride + to]);
      corrections[to] =
          Wide::add_signed(corrections[to], doubled(Wide::multiply(error, factor), 2));
    }
    const Wide::Vector whole = Wide::add_signed(error, corrections[at]);
    const Wide::Vector apart =
        doubled(Wide::multiply(whole, of_number(shaped.weights[at])), 2 + kDoublings);
    cost = Wide::add(cost, Wide::multiply(apart, apart));
  }
  return cost;
}

template <int kStepBits, int kVector>
uint16_t advance_shaped(const TrellisShape& shape, const ShapedStep& shaped) {
  constexpr int kBranches = 1 << kStepBits;
  const TrellisSteps& step = shaped.step;
  const int64_t overlaps = shape.overlaps(), run = overlaps + kTrellisLanes;
  const Wide::Vector floor = Wide::all(step.floor);
  Wide::Vector least = Wide::all(0xffff);
  uint8_t given[kVector][kTrellisLanes] = {};
  uint32_t* choices = step.choices;
  for (int64_t overlap = 0; overlap < overlaps; overlap += kTrellisLanes, choices += kBranches) {
    const Wide::Vector found =
        Wide::subtract(least_of<kBranches>(step.before + overlap, run, choices), floor);
    least = Wide::min(least, found);
    const Wide::Spread costs(found);
    uint8_t* winners = shaped.winners + overlap;
    if constexpr (kBranches > 16) name_winners<kBranches>(choices, winners);
    for (int at = 0; shaped.given != nullptr && at < kVector; ++at) {
      const uint8_t* plane = shaped.given + at * shape.cost_count() + overlap;
      Wide::store_bytes(given[at], won<kBranches>(plane, run, choices, winners));
    }
    for (int part = 0; part < kBranches; ++part) {
      const int64_t state = (overlap << kStepBits) + part * kTrellisLanes;
      Wide::Vector corrections[kVector];
      for (int at = 0; at < kVector; ++at) {
        corrections[at] =
            Wide::times(Wide::spread_bytes<kStepBits>(given[at], part), shaped.units[at]);
      }
      Wide::store(step.after + shape.place(state),
                  shaped_cost<kStepBits, kVector>(shape, shaped, state, corrections,
                                                  costs.template part<kStepBits>(part)));
    }
  }
  return Wide::lowest(least);
}
