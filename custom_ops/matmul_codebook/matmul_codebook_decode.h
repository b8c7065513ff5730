// What the codes of MatMulCodebook stand for, on a GPU and on the CPU.
#pragma once

#include "../matmul/device.h"
#include "matmul_codebook_cuda.h"

namespace onnxq::cuda {

// kDimension: numbers of an entry, 1, 2, 4 or 8.
template <int kDimension>
struct CodebookWeight : onnxq_codebook {
  static constexpr int kTableBytes = 8192;  // of books that fit into shared memory
  struct Shared {
    alignas(8) int8_t books[kTableBytes];
  };
  int64_t columns, rows, groups, column_blocks, book_bytes;
  bool is_shared;  // one set of books for the whole weight, and a small one

  ONNXQ_DEVICE CodebookWeight(const onnxq_codebook& stored, const onnxq_matmul& call)
      : onnxq_codebook(stored),
        columns(call.columns),
        rows(call.rows),
        groups((call.columns + stored.group - 1) / stored.group),
        column_blocks((call.columns + stored.block_columns - 1) / stored.block_columns),
        book_bytes(static_cast<int64_t>(stored.books) * kDimension << stored.code_bits),
        is_shared(book_bytes <= kTableBytes && stored.block_rows >= call.rows &&
                  stored.block_columns >= call.columns) {}

  ONNXQ_DEVICE void load(Shared& shared, int thread, int threads) const {
    const int words = is_shared ? static_cast<int>(book_bytes / 4) : 0;
    for (int at = thread; at < words; at += threads) {
      reinterpret_cast<uint32_t*>(shared.books)[at] =
          read(reinterpret_cast<const uint32_t*>(codebook) + at);
    }
  }

  // Code `index` of a row; codes of 4, 6, 8, 12 or 16 bits.
  ONNXQ_DEVICE uint32_t code(const uint8_t* row_codes, int64_t index) const {
    if (code_bits == 8) return read(row_codes + index);
    const int64_t place = index * code_bits;
    const int shift = static_cast<int>(place % 8);
    uint32_t word = read(row_codes + place / 8);
    if (shift + code_bits > 8) word |= static_cast<uint32_t>(read(row_codes + place / 8 + 1)) << 8;
    return word >> shift & ((1u << code_bits) - 1);
  }

  ONNXQ_DEVICE float scale(int64_t row, int64_t column) const {
    return half_value(
        read(scales + (scale_rows == 1 ? 0 : row * groups) + run_of(column, group, columns)));
  }

  ONNXQ_DEVICE float decode(const Shared& shared, int64_t row, int64_t column,
                            float (&w)[kOctet]) const {
    struct alignas(kDimension) Entry {
      int8_t value[kDimension];
    };
    const uint8_t* row_codes = codes + row * ((columns / kDimension * books * code_bits + 7) / 8);
    const int8_t* row_books = codebook + run_of(row, block_rows, rows) * column_blocks * book_bytes;
    ONNXQ_UNROLL for (int i = 0; i < kOctet; i += kDimension) {
      const int64_t at = column + i < columns ? column + i : column;
      const int8_t* book =
          is_shared ? shared.books : row_books + run_of(at, block_columns, columns) * book_bytes;
      const int64_t first = at / kDimension * books;
      int sums[kDimension] = {};
      for (int b = 0; b < books; ++b) {
        const int64_t entry = (static_cast<int64_t>(b) << code_bits) + code(row_codes, first + b);
        const Entry values = reinterpret_cast<const Entry*>(book)[entry];
        ONNXQ_UNROLL for (int k = 0; k < kDimension; ++k) sums[k] += values.value[k];
      }
      ONNXQ_UNROLL for (int k = 0; k < kDimension; ++k) w[i + k] = static_cast<float>(sums[k]);
    }
    if (group >= columns || group % kOctet == 0) return scale(row, column);
    float values[kOctet];
    scales_of(row, column, values);
    ONNXQ_UNROLL for (int i = 0; i < kOctet; ++i) w[i] *= values[i];
    return 1.0f;
  }

  // Of each column of an octet in which a group may end: rare, and so kept out of the way.
  ONNXQ_DEVICE_CALL void scales_of(int64_t row, int64_t column, float* values) const {
    for (int i = 0; i < kOctet; ++i) {
      values[i] = scale(row, column + i < columns ? column + i : column);
    }
  }
};

}  // namespace onnxq::cuda
