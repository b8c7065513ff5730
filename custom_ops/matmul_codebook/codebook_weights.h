// What the operator MatMulCodebook does with its attributes and arrays: checks, then repacking.
#pragma once

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "../matmul/matmul_op.h"
#include "stored.h"

namespace onnxq::ort {

class CodebookWeights {
 public:
  static constexpr const char* kName = "MatMulCodebook";
  static constexpr ElementType kArrays[] = {ElementType::kUint8, ElementType::kInt8,
                                            ElementType::kFloat16};
  static constexpr const char* kAttributes[] = {"rows",       "columns",       "dimension",
                                                "bits",       "books",         "group",
                                                "block_rows", "block_columns", "activation_bits"};

  CodebookWeights(const Attributes& attributes, const std::vector<Tensor>& arrays)
      : kernels_(code_kernels()),
        is_rounded_(attributes.integer("activation_bits", 8, 32) == 8),
        packed_(checked(attributes, arrays)) {}

  int64_t rows() const { return packed_.matrix().rows; }
  int64_t columns() const { return packed_.matrix().columns; }
  // At least two parts, and no more than have some blocks each to share what is loaded of tables.
  int64_t step() const {
    const int64_t blocks = (rows() + kCodeRows - 1) / kCodeRows;
    const int64_t parts = std::clamp<int64_t>(blocks / kPartBlocks, 2, kMostParts);
    return (blocks + parts - 1) / parts * kCodeRows;
  }

  size_t prepared_size(int64_t tokens) const {
    if (!is_rounded_) return 0;
    if (has_own_tables(tokens)) return sizeof(uint64_t);
    const CodeMatrix& w = packed_.matrix();
    return static_cast<size_t>(tokens * (has_tables(tokens) ? w.tabled_bytes() : w.token_bytes()));
  }
  int64_t prepared_items(int64_t tokens) const {
    if (has_own_tables(tokens)) return 1;
    return has_tables(tokens) ? tokens * tiles() : tokens;
  }
  void prepare(const float* a, int64_t tokens, int64_t begin, int64_t end, void* prepared) const {
    if (has_own_tables(tokens)) {
      static std::atomic<uint64_t> tickets{0};
      *static_cast<uint64_t*>(prepared) = ++tickets;
      return;
    }
    (has_tables(tokens) ? kernels_.prepare_tables : kernels_.prepare)(
        packed_.matrix(), a, begin, end, static_cast<uint8_t*>(prepared));
  }
  void multiply(const float* a, const void* prepared, int64_t tokens, float* y, int64_t stride,
                int64_t begin, int64_t end) const {
    const CodeMatrix& w = packed_.matrix();
    if (!is_rounded_) return kernels_.multiply_float(w, a, tokens, y, stride, begin, end);
    const uint8_t* const token = has_own_tables(tokens)
                                     ? own_tables(a, *static_cast<const uint64_t*>(prepared))
                                     : static_cast<const uint8_t*>(prepared);
    (has_tables(tokens) ? kernels_.look_up : kernels_.multiply)(w, token, tokens, y, stride, begin,
                                                                end);
  }

 private:
  int64_t tiles() const { return static_cast<int64_t>(packed_.matrix().tiles.size()); }
  bool has_tables(int64_t tokens) const {
    return packed_.matrix().table_books != nullptr && tokens <= kernels_.table_tokens;
  }
  // Tables of one token are made by each thread for itself: that takes a seventh of a product of
  // 4096 x 4096, and less than a second round over all threads and reading half a megabyte from
  // the cache of another core (186 us with two threads; 228 with one; Zen 4, d = 4, 256 entries).
  bool has_own_tables(int64_t tokens) const {
    return tokens == 1 && has_tables(tokens) && packed_.matrix().row_books == 1;
  }
  // The tables of the call with this ticket, made once by each thread that takes part in it.
  const uint8_t* own_tables(const float* a, uint64_t ticket) const {
    thread_local struct {
      Memory memory;
      uint8_t* bytes = nullptr;
      int64_t size = 0;
      uint64_t ticket = 0;
    } own;
    if (own.ticket == ticket) return own.bytes;
    const CodeMatrix& w = packed_.matrix();
    if (own.size < w.tabled_bytes()) {
      own.size = 0;  // should there be no memory
      own.bytes = own.memory.zeros<uint8_t>(w.tabled_bytes());
      own.size = w.tabled_bytes();
    }
    kernels_.prepare_tables(w, a, 0, tiles(), own.bytes);
    own.ticket = ticket;
    return own.bytes;
  }

  static constexpr int64_t kPartBlocks = 4, kMostParts = 16;

  static StoredCodes checked(const Attributes& attributes, const std::vector<Tensor>& arrays) {
    StoredCodes stored{};
    stored.rows = attributes.integer("rows", 1, kMaxSize);
    stored.columns = attributes.integer("columns", 1, kMaxSize);
    stored.dimension = static_cast<int>(attributes.integer("dimension", 1, 8));
    stored.bits = static_cast<int>(attributes.integer("bits", 1, 16));
    stored.books = static_cast<int>(attributes.integer("books", 1, 16));
    stored.group = attributes.integer("group", 1, kMaxSize);
    stored.block_rows = attributes.integer("block_rows", 1, kMaxSize);
    stored.block_columns = attributes.integer("block_columns", 1, kMaxSize);
    check_sizes(attributes, stored);
    const Tensor &codes = arrays[0], &codebook = arrays[1], &scales = arrays[2];
    attributes.want("codes", codes, {stored.rows, stored.row_bytes()});
    attributes.want("codebook", codebook,
                    {stored.row_blocks(), stored.column_blocks(), stored.books, stored.entries(),
                     stored.dimension});
    if (scales.shape != std::vector<int64_t>{1, stored.groups()}) {
      attributes.want("scales", scales, {stored.rows, stored.groups()});
    }
    stored.codes = codes.as<uint8_t>();
    stored.codebook = codebook.as<int8_t>();
    stored.scales = scales.as<uint16_t>();
    stored.scale_rows = scales.shape[0];
    return stored;
  }

  static void check_sizes(const Attributes& attributes, const StoredCodes& stored) {
    const int bits = stored.bits, dimension = stored.dimension;
    if (bits != 4 && bits != 6 && bits != 8 && bits != 12 && bits != 16) {
      attributes.fail("attribute bits is " + std::to_string(bits) +
                      ", and must be 4, 6, 8, 12 or 16");
    }
    const int64_t activation_bits = attributes.integer("activation_bits", 8, 32);
    if (activation_bits != 8 && activation_bits != 32) {
      attributes.fail("attribute activation_bits is " + std::to_string(activation_bits) +
                      ", and must be 8 or 32");
    }
    if (dimension & (dimension - 1)) {
      attributes.fail("attribute dimension is " + std::to_string(dimension) +
                      ", and must be 1, 2, 4 or 8");
    }
    if (stored.columns % dimension || stored.group % dimension ||
        stored.block_columns % dimension) {
      attributes.fail("columns, group and block_columns must be multiples of dimension = " +
                      std::to_string(dimension));
    }
    if (stored.block_rows % kCodeRows && stored.block_rows < stored.rows) {
      attributes.fail("attribute block_rows is " + std::to_string(stored.block_rows) +
                      ", and must be a multiple of " + std::to_string(kCodeRows) +
                      " or no less than rows");
    }
  }

  const CodeKernels& kernels_;
  const bool is_rounded_;
  PackedCodes packed_;
};

}  // namespace onnxq::ort
