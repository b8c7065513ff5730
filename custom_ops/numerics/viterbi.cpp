#include "viterbi.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "parallel.h"

namespace onnxq {
namespace {

// What values and targets carry to columns of their row, in numbers of 8 bits that wrap around.
class CarriedBy {
 public:
  explicit CarriedBy(const Trellis& of)
      : of_(of), tables_(static_cast<size_t>(steps() * columns() * of.shape.states())) {
    const int64_t states = of.shape.states();
    for (int64_t from = 0; from < columns(); from += of.shape.vector) {
      for (int64_t column = 0; column < from; ++column) {
        uint8_t* table = tables_.data() + place(from, column);
        for (int64_t state = 0; state < states; ++state) {
          table[state] = number(of.values + state, states, from, column);
        }
      }
    }
  }

  // What the values of all states carry from a step, whose first column is `from`.
  const uint8_t* values(int64_t from, int64_t column) const {
    return tables_.data() + place(from, column);
  }

  // What numbers, `stride` apart, carry from a step.
  uint8_t number(const int16_t* numbers, int64_t stride, int64_t from, int64_t column) const {
    const TrellisShape& shape = of_.shape;
    const int16_t* feedback = of_.shaping->feedback + from * columns() + column;
    int64_t sum = 0;
    for (int64_t at = 0; at < shape.vector; ++at) {
      sum += int64_t{numbers[at * stride]} * feedback[at * columns()];
    }
    // To nearest: a multiple of 256 makes up for what is below 0.
    const int64_t unit = int64_t{of_.shaping->units[column]} << 13, wrap = int64_t{1} << 40;
    return static_cast<uint8_t>((sum + unit / 2 + unit * wrap) / unit);
  }

 private:
  int64_t columns() const { return of_.shaping->columns; }
  int64_t steps() const { return columns() / of_.shape.vector; }
  size_t place(int64_t from, int64_t column) const {
    return static_cast<size_t>((from / of_.shape.vector * columns() + column) * of_.shape.states());
  }

  const Trellis& of_;
  std::vector<uint8_t> tables_;
};

// One search at a time, with its memory.
class Search {
 public:
  // `carried_by` is null where errors are not carried on.
  Search(const Trellis& of, const CarriedBy* carried_by, const ViterbiKernels& kernels)
      : of_(of),
        carried_by_(carried_by),
        advance_(kernels.advance(of.shape.step_bits, of.shape.vector)),
        advance_twice_(of.shape.state_bits - 2 * of.shape.step_bits < 5
                           ? nullptr
                           : kernels.advance_twice(of.shape.step_bits, of.shape.vector)),
        advance_shaped_(kernels.advance_shaped(of.shape.step_bits, of.shape.vector)),
        carry_(kernels.carry(of.shape.step_bits)),
        carried_(
            of.shaping == nullptr
                ? nullptr
                : new uint8_t[static_cast<size_t>((of.shape.vector + 1) * of.shape.cost_count())]),
        winners_(of.shaping == nullptr
                     ? nullptr
                     : new uint8_t[static_cast<size_t>(of.shaping->columns * of.shape.overlaps())]),
        costs_(new uint16_t[static_cast<size_t>(2 * of.shape.cost_count())]),
        choices_(new uint32_t[static_cast<size_t>(std::max(of.length, 2 * of.window) *
                                                  of.shape.choice_count())]) {}

  void run(const int16_t* targets, uint16_t* states) {
    const int64_t joint = find_joint(targets);
    start(joint);
    for (int64_t step = 0; step < of_.length; step += 2) advance(targets, step, step);
    // The last state is one of those that the joint may follow: the best of them.
    trace(joint | best_branch(joint) << overlap_bits(), states);
  }

 private:
  int overlap_bits() const { return of_.shape.state_bits - of_.shape.step_bits; }

  uint32_t* choices_at(int64_t step) const {
    return choices_.get() + step * of_.shape.choice_count();
  }

  // Costs of nothing for the states that may come before the first: all, or those of one overlap.
  void start(int64_t overlap) {
    before_ = costs_.get();
    after_ = before_ + of_.shape.cost_count();
    floor_ = 0;
    std::fill(before_, after_, uint16_t{0xffff});
    for (int64_t branch = 0; branch < of_.shape.branches(); ++branch) {
      before_[of_.shape.place(overlap | branch << overlap_bits())] = 0;
    }
  }

  // Two steps of a search, `step` and the one after it, at `place` of the ring.
  void advance(const int16_t* ring, int64_t step, int64_t place) {
    const TrellisShape& shape = of_.shape;
    if (of_.shaping != nullptr) {
      for (int64_t next = 0; next < 2; ++next) {
        advance_shaped(ring, step + next, place + next);
      }
      return;
    }
    const int16_t* targets = ring + place * shape.vector;
    if (advance_twice_ != nullptr) {
      floor_ =
          advance_twice_(shape, {before_, floor_, of_.values, targets, after_, choices_at(step)});
      std::swap(before_, after_);
      return;
    }
    for (int64_t next = 0; next < 2; ++next) {
      floor_ = advance_(shape, {before_, next == 0 ? floor_ : uint16_t{0}, of_.values,
                                targets + next * shape.vector, after_, choices_at(step + next)});
      std::swap(before_, after_);
    }
  }

  // A row is gone through again for every column, which needs little memory at a time.
  void advance_shaped(const int16_t* ring, int64_t step, int64_t place) {
    const TrellisShape& shape = of_.shape;
    const Shaping& shaping = *of_.shaping;
    const int64_t past = std::min(step, place % (shaping.columns / shape.vector));
    const int64_t column = column_of(place);
    for (int64_t at = 0; past > 0 && at < shape.vector; ++at) {
      carry(ring, step - past, place - past, column + at, past, at);
    }
    const int16_t* feedback = shaping.feedback + column * shaping.columns + column;
    floor_ = advance_shaped_(shape, {{before_, floor_, of_.values, ring + place * shape.vector,
                                      after_, choices_at(step)},
                                     shaping.weights + column,
                                     feedback,
                                     shaping.columns,
                                     shaping.units + column,
                                     past > 0 ? carried_.get() : nullptr,
                                     winners_at(place)});
    std::swap(before_, after_);
  }

  // What the errors of some steps of a row carry to one of its columns, into plane `to`; the plane
  // behind the last one is free.
  void carry(const int16_t* ring, int64_t step, int64_t place, int64_t column, int64_t steps,
             int64_t to) {
    const TrellisShape& shape = of_.shape;
    uint8_t* wanted = carried_.get() + to * shape.cost_count();
    uint8_t* other = carried_.get() + shape.vector * shape.cost_count();
    if (steps % 2 == 0) std::swap(wanted, other);
    const uint8_t* given = nullptr;
    for (int64_t at = 0; at < steps; ++at) {
      const int64_t from = column_of(place + at);
      const int16_t* targets = ring + (place + at) * shape.vector;
      carry_(shape,
             {choices_at(step + at), winners_at(place + at), carried_by_->values(from, column),
              carried_by_->number(targets, 1, from, column), given, wanted});
      given = wanted;
      std::swap(wanted, other);
    }
  }

  // A row's worth is enough.
  uint8_t* winners_at(int64_t place) const {
    return winners_.get() + place % of_.shaping->columns * of_.shape.overlaps();
  }

  // The first column of a step: time runs from the last one to the first.
  int64_t column_of(int64_t place) const {
    const int64_t columns = of_.shaping->columns, vector = of_.shape.vector;
    return columns - vector - place % (columns / vector) * vector;
  }

  // The overlap at the joint on the best path through a window around it.
  int64_t find_joint(const int16_t* targets) {
    start(0);
    std::fill(before_, after_, uint16_t{0});
    const int64_t span = of_.window;
    for (int64_t step = 0; step < 2 * span; step += 2) {
      advance(targets, step, (step - span + of_.length) % of_.length);
    }
    int64_t best = 0;
    for (int64_t state = 0; state < of_.shape.states(); ++state) {
      if (before_[of_.shape.place(state)] < before_[of_.shape.place(best)]) best = state;
    }
    for (int64_t step = 2 * span; --step > span;) best = previous(best, choices_at(step));
    return best >> of_.shape.step_bits;
  }

  // Which branch won at an overlap.
  int64_t winner(int64_t overlap, const uint32_t* choices) const {
    const int64_t branches = of_.shape.branches();
    const uint32_t* nodes = choices + overlap / kTrellisLanes * branches;
    int64_t node = 1;
    while (node < branches) node = 2 * node + (nodes[node] >> (overlap % kTrellisLanes) & 1);
    return node - branches;
  }

  int64_t previous(int64_t state, const uint32_t* choices) const {
    const int64_t overlap = state >> of_.shape.step_bits;
    return overlap | winner(overlap, choices) << overlap_bits();
  }

  // The branch with the least cost among those of one overlap, in the costs of now.
  int64_t best_branch(int64_t overlap) const {
    int64_t best = 0;
    for (int64_t branch = 1; branch < of_.shape.branches(); ++branch) {
      if (cost(overlap, branch) < cost(overlap, best)) best = branch;
    }
    return best;
  }

  uint16_t cost(int64_t overlap, int64_t branch) const {
    return before_[of_.shape.place(overlap | branch << overlap_bits())];
  }

  void trace(int64_t state, uint16_t* states) const {
    for (int64_t step = of_.length; step-- > 0; state = previous(state, choices_at(step))) {
      states[step] = static_cast<uint16_t>(state);
    }
  }

  const Trellis& of_;
  const CarriedBy* carried_by_;
  ViterbiKernels::Advance advance_, advance_twice_;
  ViterbiKernels::AdvanceShaped advance_shaped_;
  ViterbiKernels::Carry carry_;
  std::unique_ptr<uint8_t[]> carried_;  // planes of all states: one for each value, and one more
  std::unique_ptr<uint8_t[]> winners_;
  std::unique_ptr<uint16_t[]> costs_;
  std::unique_ptr<uint32_t[]> choices_;
  uint16_t *before_ = nullptr, *after_ = nullptr, floor_ = 0;
};

}  // namespace

bool find_paths(const Trellis& of, const int16_t* targets, int64_t sequences, uint16_t* states,
                int threads, const ViterbiKernels& kernels) {
  const int64_t size = of.length * of.shape.vector;
  std::atomic<int64_t> next{0};
  std::atomic<bool> enough{true};
  const int workers = worker_count(sequences, threads);
  std::unique_ptr<const CarriedBy> carried_by;
  try {
    if (of.shaping != nullptr) carried_by = std::make_unique<CarriedBy>(of);
  } catch (const std::bad_alloc&) {
    return false;
  }
  split(workers, workers, [&](int, int64_t, int64_t) {
    try {
      Search search(of, carried_by.get(), kernels);
      for (int64_t at = next++; at < sequences; at = next++) {
        search.run(targets + at * size, states + at * of.length);
      }
    } catch (const std::bad_alloc&) {
      enough = false;
    }
  });
  return enough;
}

}  // namespace onnxq
