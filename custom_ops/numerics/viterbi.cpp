#include "viterbi.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "parallel.h"

namespace onnxq {
namespace {

// One search at a time, with its memory.
class Search {
 public:
  Search(const Trellis& of, const ViterbiKernels& kernels)
      : of_(of),
        advance_(kernels.advance(of.shape.step_bits, of.shape.vector)),
        advance_twice_(of.shape.state_bits - 2 * of.shape.step_bits < 5
                           ? nullptr
                           : kernels.advance_twice(of.shape.step_bits, of.shape.vector)),
        costs_(new uint16_t[static_cast<size_t>(2 * of.shape.cost_count())]),
        choices_(new uint32_t[static_cast<size_t>(std::max(of.length, 2 * of.window) *
                                                  of.shape.choice_count())]) {}

  void run(const int16_t* targets, uint16_t* states) {
    const int64_t joint = find_joint(targets);
    start(joint);
    for (int64_t step = 0; step < of_.length; step += 2) {
      advance(targets + step * of_.shape.vector, step);
    }
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

  // Two steps, `step` and the one after it, to targets [2][vector].
  void advance(const int16_t* targets, int64_t step) {
    const TrellisShape& shape = of_.shape;
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

  // The overlap at the joint on the best path through a window around it.
  int64_t find_joint(const int16_t* targets) {
    start(0);
    std::fill(before_, after_, uint16_t{0});
    const int64_t span = of_.window;
    for (int64_t step = 0; step < 2 * span; step += 2) {
      const int64_t place = (step - span + of_.length) % of_.length;
      advance(targets + place * of_.shape.vector, step);
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
  ViterbiKernels::Advance advance_, advance_twice_;
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
  split(workers, workers, [&](int, int64_t, int64_t) {
    try {
      Search search(of, kernels);
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
