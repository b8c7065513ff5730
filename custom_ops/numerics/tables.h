// Tables of a few values for many numbers: exact weighted k-means in one dimension, the nearest
// entry of a table, and the best scale of a given table. See onnxq/numerics/tables.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxq {

constexpr int kMostEntries = 256;

// A weight [rows][columns]; `group` neighbours of a row share a table.
struct Numbers {
  const float* values;
  int64_t rows, columns;
  ptrdiff_t stride;             // from row to row; columns are neighbours
  const float* importance;      // of a squared error; [columns], or [rows][columns]
  ptrdiff_t importance_stride;  // 0: all rows alike
  int64_t group;
  int64_t groups() const { return (columns + group - 1) / group; }
};

// tables[row][group][entries], ascending: means of the clusters with the least weighted sum of
// squared errors; masses: the importance of each cluster, 0 for one that is not used. More than
// `most` numbers are first joined into as many runs of neighbours, and the clusters of those are
// then improved on all numbers (Lloyd) until they stay the same.
void fit_tables(const Numbers& numbers, int entries, int64_t most, double* tables, double* masses,
                int threads);

// Tables of `entries` ascending values, each number being scale * entry; strides of 0 share.
struct Tables {
  const float* entries;  // [rows][groups][count]
  ptrdiff_t row, group;  // strides of the tables
  int count;
  const float* scales;  // [rows][groups], not 0
  ptrdiff_t scale_row, scale_group;
};

// codes[row][column]: the entry nearest to value / scale, the lower of equals.
void nearest_entries(const Numbers& numbers, const Tables& tables, uint8_t* codes, int threads);

// scales[row][group] (float16 values): of all factor * most, where `most` is the largest magnitude
// of the group over the largest of the table, and of the same with the other sign where
// `signs` is 2, the one with the least weighted sum of squared errors, which goes to costs.
void search_scales(const Numbers& numbers, const float* table, int count, const float* factors,
                   int factor_count, int signs, float* scales, double* costs, int threads);

}  // namespace onnxq
