// The nearest points of E8P and of its residual stages: see onnxq/numerics/e8p.py for the meaning.
#pragma once

#include <cstdint>

#include "e8p_book.h"

namespace onnxq {

constexpr int kE8pLanes = 16;  // vectors rounded side by side, stored [place][lane]

struct E8pNearest {
  const char* name;
  // The nearest point of E8P, as whole numbers; masks of signs, threes and fives; shift 0 or 1.
  void (*e8p)(const float* x, const E8pGains&, float* point, int32_t* signs, int32_t* threes,
              int32_t* fives, int32_t* shift);
  // The nearest point of the one-bit book, in halves.
  void (*bit)(const float* x, float* point);
};

const E8pNearest& e8p_nearest();          // the best one this CPU has
const E8pNearest* e8p_nearest_generic();  // the baseline of the architecture
const E8pNearest* e8p_nearest_avx2();     // null where not compiled or the CPU lacks it
const E8pNearest* e8p_nearest_avx512();

// Vectors of a weight, [rows][vectors * 8], and where their codes go.
struct E8pWeight {
  const float* values;
  int64_t rows, vectors;
  const float* scales;  // [rows], of a point; 0 where a row is all zeros
  int bits;             // 2, 3 or 4
};

// codes [rows][vectors * stages], stages 1 at 2 bits and 2 above; points [rows][vectors * 8]. The
// result does not depend on `threads`, nor on the instruction set.
void e8p_round(const E8pWeight&, uint16_t* codes, float* points, int threads, const E8pNearest&);

// costs[rows]: the sum over columns of importance times squared error.
void e8p_costs(const E8pWeight&, const float* importance, double* costs, int threads,
               const E8pNearest&);

}  // namespace onnxq
