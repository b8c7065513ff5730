// Codes of tables chosen one at a time, and what the best tables for given codes follow from. One
// instruction set per file (entry_descent_*.cpp) compiles the same source; see
// onnxq/numerics/entry_descent.py for the algebra.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxq {

// Points that the codes of a row stand for.
struct EntryTables {
  const float* points;  // [groups][count]
  int count;
  ptrdiff_t group_stride;  // 0 where all groups of the row share a table
  int64_t group;           // columns of one
};

struct EntryDescentKernels {
  // Sets every code to the best one given all others, column after column, `sweeps` times at most;
  // `residual` is (w - decoded) · H and stays so. `inverse` is 1 / diagonal, 0 for a column that no
  // input reaches. Returns how many codes changed.
  int64_t (*descend)(const float* hessian, const float* inverse, int64_t columns,
                     const EntryTables& tables, int sweeps, uint8_t* codes, float* residual);
  // sums[a][b] = Σ hessian[i][j] over columns i of code a and j of code b; `scratch` holds
  // [entries][columns].
  void (*sums)(const float* hessian, ptrdiff_t stride, int64_t columns, const uint8_t* codes,
               int entries, float* scratch, double* sums);
};

const EntryDescentKernels& entry_descent_kernels();  // the best that `instructions()` allows
const EntryDescentKernels* entry_descent_generic();  // the baseline of the architecture
const EntryDescentKernels* entry_descent_avx2();     // null where not compiled
const EntryDescentKernels* entry_descent_avx512();

// Of all rows: codes and residuals are [rows][columns]; points [rows][...], or `row_stride` 0.
int64_t descend_entries(const float* hessian, int64_t rows, int64_t columns,
                        const EntryTables& tables, ptrdiff_t row_stride, int sweeps, uint8_t* codes,
                        float* residual, int threads);
// sums[row][entries][entries] for the columns [first, first + count) of every row.
void entry_sums(const float* hessian, int64_t rows, int64_t columns, int64_t first, int64_t count,
                const uint8_t* codes, int entries, double* sums, int threads);

}  // namespace onnxq
