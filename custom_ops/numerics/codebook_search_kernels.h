// The source of codebook_search_*.cpp; ONNXQ_ISA names the instruction set.
//
// A tile is kSearchLanes vectors, one to a lane. With weights g and what is left of a vector, r, an
// entry c costs sum of g (r - c)^2 = sum of g r^2 + sum of c (g c - 2 g r), of which only the last
// sum tells entries apart; without weights half of it, |c|^2 / 2 - c r, is compared.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "codebook_search.h"

// Vectors wider than the registers go through memory; no function here is called from elsewhere.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace {

using onnxq::kMostBooks;
using onnxq::kMostDimension;
using onnxq::kSearchLanes;
using onnxq::kWidestBeam;
using onnxq::SearchProblem;

typedef float Floats __attribute__((vector_size(4 * kSearchLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kSearchLanes)));

template <int kDimension>
struct Hypothesis {
  Floats left[kDimension];  // what the entries so far leave of the vector
  Floats cost;              // of the entries so far, up to what all of them share
  int32_t codes[kMostBooks][kSearchLanes];
};

// Candidates of the next stage, best first in every lane.
struct Kept {
  Floats cost[kWidestBeam];
  Ints parent[kWidestBeam], code[kWidestBeam];
};

inline Floats choose(Ints mask, Floats yes, Floats no) { return mask ? yes : no; }
inline Ints choose(Ints mask, Ints yes, Ints no) { return mask ? yes : no; }

inline bool any(Ints mask) {
  int32_t found = 0;
  for (int lane = 0; lane < kSearchLanes; ++lane) found |= mask[lane];
  return found != 0;
}

// Puts a candidate into each lane where it beats the last one kept; earlier ones win ties.
inline void insert(Kept& kept, int beam, Floats cost, int32_t parent, int32_t code) {
  Ints better = cost < kept.cost[beam - 1];
  if (!any(better)) return;
  Ints parents = parent + Ints{}, codes = code + Ints{};
  for (int slot = 0; slot < beam; ++slot) {
    better = cost < kept.cost[slot];
    const Floats old_cost = kept.cost[slot];
    const Ints old_parent = kept.parent[slot], old_code = kept.code[slot];
    kept.cost[slot] = choose(better, cost, old_cost);
    kept.parent[slot] = choose(better, parents, old_parent);
    kept.code[slot] = choose(better, codes, old_code);
    cost = choose(better, old_cost, cost);
    parents = choose(better, old_parent, parents);
    codes = choose(better, old_code, codes);
  }
}

template <int kDimension, bool kWeighted>
struct Tile {
  Floats value[kDimension], weight[kDimension];
  Hypothesis<kDimension> now[kWidestBeam], next[kWidestBeam];
  Kept kept;
  int lanes;

  void load(const SearchProblem& problem, int64_t at, int64_t end) {
    lanes = static_cast<int>(std::min<int64_t>(kSearchLanes, end - at));
    for (int lane = 0; lane < kSearchLanes; ++lane) {
      const int64_t from = (at + std::min(lane, lanes - 1)) * kDimension;
      for (int entry = 0; entry < kDimension; ++entry) {
        value[entry][lane] = problem.values[from + entry];
        if (kWeighted) weight[entry][lane] = problem.weights[from + entry];
      }
    }
    for (int entry = 0; entry < kDimension; ++entry) now[0].left[entry] = value[entry];
    now[0].cost = Floats{};
  }

  // Adds one entry of `book` to each of `count` hypotheses and keeps the best `beam`.
  void stage(const float* book, const float* halves, int64_t entries, int count, int beam) {
    for (int slot = 0; slot < beam; ++slot) {
      kept.cost[slot] = std::numeric_limits<float>::infinity() + Floats{};
      kept.parent[slot] = kept.code[slot] = Ints{};
    }
    for (int from = 0; from < count; ++from) {
      const Hypothesis<kDimension>& parent = now[from];
      Floats pull[kDimension];
      for (int entry = 0; entry < kDimension; ++entry) {
        pull[entry] = kWeighted ? -2.0f * weight[entry] * parent.left[entry] : parent.left[entry];
      }
      if (beam == 1) {
        scan(book, halves, entries, parent.cost, pull, from);
        continue;
      }
      for (int64_t code = 0; code < entries; ++code) {
        insert(kept, beam, cost_of(book + code * kDimension, halves[code], parent.cost, pull), from,
               static_cast<int32_t>(code));
      }
    }
  }

  inline Floats cost_of(const float* point, float half, Floats cost, const Floats* pull) const {
    if (kWeighted) {
      for (int entry = 0; entry < kDimension; ++entry) {
        cost += point[entry] * (point[entry] * weight[entry] + pull[entry]);
      }
    } else {
      cost += half;
      for (int entry = 0; entry < kDimension; ++entry) cost -= point[entry] * pull[entry];
    }
    return cost;
  }

  // `stage` with a beam of one.
  void scan(const float* book, const float* halves, int64_t entries, const Floats& cost,
            const Floats* pull, int from) {
    Floats best = kept.cost[0];
    Ints code = Ints{} - 1;
    for (int64_t index = 0; index < entries; ++index) {
      const Floats trial = cost_of(book + index * kDimension, halves[index], cost, pull);
      const Ints better = trial < best;
      best = choose(better, trial, best);
      code = choose(better, static_cast<int32_t>(index) + Ints{}, code);
    }
    const Ints changed = code >= 0;
    kept.cost[0] = best;
    kept.code[0] = choose(changed, code, kept.code[0]);
    kept.parent[0] = choose(changed, from + Ints{}, kept.parent[0]);
  }

  // Makes hypotheses of what was kept; `book` is the one of stage `index`.
  void advance(const float* book, int index, int count) {
    for (int slot = 0; slot < count; ++slot) {
      Hypothesis<kDimension>& to = next[slot];
      to.cost = kept.cost[slot];
      for (int lane = 0; lane < kSearchLanes; ++lane) {
        const Hypothesis<kDimension>& from = now[kept.parent[slot][lane]];
        const int32_t code = kept.code[slot][lane];
        for (int entry = 0; entry < kDimension; ++entry) {
          to.left[entry][lane] = from.left[entry][lane] - book[code * kDimension + entry];
        }
        for (int before = 0; before < index; ++before) {
          to.codes[before][lane] = from.codes[before][lane];
        }
        to.codes[index][lane] = code;
      }
    }
    std::copy(next, next + count, now);
  }
};

template <int kDimension, bool kWeighted>
void search_tiles(const SearchProblem& problem, int64_t begin, int64_t end, uint16_t* codes) {
  // Fits on the stack: some 100 KiB at most.
  Tile<kDimension, kWeighted> tile;
  const int books = problem.books_count;
  const int64_t size = problem.entries * kDimension;
  for (int64_t at = begin; at < end; at += kSearchLanes) {
    tile.load(problem, at, end);
    int count = 1;
    for (int index = 0; index < books; ++index) {
      const int64_t most = std::min<int64_t>(problem.beam, problem.entries * count);
      const int beam = index + 1 == books ? 1 : static_cast<int>(most);
      const float* book = problem.books + index * size;
      tile.stage(book, problem.halves + index * problem.entries, problem.entries, count, beam);
      tile.advance(book, index, beam);
      count = beam;
    }
    for (int lane = 0; lane < tile.lanes; ++lane) {
      for (int index = 0; index < books; ++index) {
        codes[(at + lane) * books + index] = static_cast<uint16_t>(tile.now[0].codes[index][lane]);
      }
    }
  }
}

template <bool kWeighted>
void search_dimension(const SearchProblem& problem, int64_t begin, int64_t end, uint16_t* codes) {
  switch (problem.dimension) {
    case 1:
      return search_tiles<1, kWeighted>(problem, begin, end, codes);
    case 2:
      return search_tiles<2, kWeighted>(problem, begin, end, codes);
    case 4:
      return search_tiles<4, kWeighted>(problem, begin, end, codes);
    default:
      return search_tiles<8, kWeighted>(problem, begin, end, codes);
  }
}

void search(const SearchProblem& problem, int64_t begin, int64_t end, uint16_t* codes) {
  if (problem.weights) {
    search_dimension<true>(problem, begin, end, codes);
  } else {
    search_dimension<false>(problem, begin, end, codes);
  }
}

const onnxq::SearchKernels kKernels = {ONNXQ_ISA, search};

}  // namespace
