// Runs every kernel of MatMulCodebook over odd shapes on exactly sized buffers, for the sanitizers,
// and checks that instruction sets, tables, panels and portions of rows give the same bits; then
// feeds the checks of the operator with arrays and attributes that are wrong in every way, and
// multiplies by those that pass. The values themselves are judged against float64 by
// tests/custom_ops/test_matmul_codebook.py.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../cpu/cpu.h"
#include "../codebook_weights.h"

namespace {

using namespace onnxq;
using ort::Attributes;
using ort::Tensor;

int failures = 0;
std::mt19937 engine(7);

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "%s\n", what.c_str());
}

int64_t drawn(int64_t lowest, int64_t highest) {
  return std::uniform_int_distribution<int64_t>(lowest, highest)(engine);
}

std::vector<const CodeKernels*> all_kernels() {
  std::vector<const CodeKernels*> found;
  const Instructions best = instructions();
  const auto add = [&](Instructions needed, const CodeKernels* kernels) {
    if (best >= needed && kernels != nullptr) found.push_back(kernels);
  };
  add(Instructions::kGeneric, &code_kernels_generic());
  add(Instructions::kAvx2, code_kernels_avx2());
  add(Instructions::kAvx512, code_kernels_avx512());
  add(Instructions::kVnni, code_kernels_vnni());
  add(Instructions::kDot, code_kernels_dot());
  return found;
}

// Arrays of a weight, each in memory of its own that ends where it ends.
struct Case {
  StoredCodes stored{};
  std::vector<uint8_t> codes;
  std::vector<int8_t> codebook;
  std::vector<uint16_t> scales;

  Case(int64_t rows, int64_t columns, int dimension, int bits, int books, int64_t group,
       int64_t block_rows, int64_t block_columns, int most) {
    stored.rows = rows;
    stored.columns = columns;
    stored.dimension = dimension;
    stored.bits = bits;
    stored.books = books;
    stored.group = group;
    stored.block_rows = block_rows;
    stored.block_columns = block_columns;
    stored.scale_rows = drawn(0, 1) == 0 ? 1 : rows;
    codes.resize(static_cast<size_t>(rows * stored.row_bytes()));
    codebook.resize(static_cast<size_t>(stored.row_blocks() * stored.column_blocks() * books *
                                        stored.entries() * dimension));
    scales.resize(static_cast<size_t>(stored.scale_rows * stored.groups()));
    for (uint8_t& code : codes) code = static_cast<uint8_t>(engine());
    for (int8_t& value : codebook) value = static_cast<int8_t>(drawn(-most, most));
    for (uint16_t& scale : scales) scale = static_cast<uint16_t>(0x2000 + drawn(0, 0xfff));
    stored.codes = codes.data();
    stored.codebook = codebook.data();
    stored.scales = scales.data();
  }

  std::string text() const {
    return std::to_string(stored.rows) + " x " + std::to_string(stored.columns) + " in " +
           std::to_string(stored.books) + " x " + std::to_string(stored.bits) + " bits of " +
           std::to_string(stored.dimension) + ", g" + std::to_string(stored.group);
  }
};

// At the start of a cache line, as the operator gives it.
std::unique_ptr<uint8_t, decltype(&std::free)> lines(int64_t size) {
  const size_t whole = (static_cast<size_t>(size) + 63) / 64 * 64;
  return {static_cast<uint8_t*>(std::aligned_alloc(64, whole)), &std::free};
}

template <class Work>
void in_threads(int64_t items, int64_t part, int64_t threads, const Work& work) {
  const auto share = [&](int64_t first) {
    for (int64_t begin = first * part; begin < items; begin += threads * part) {
      work(begin, begin + part < items ? begin + part : items);
    }
  };
  std::vector<std::thread> workers;
  for (int64_t first = 1; first < threads; ++first) workers.emplace_back(share, first);
  share(0);
  for (std::thread& worker : workers) worker.join();
}

enum class Way { kPanels, kTables, kFloat };

std::vector<float> product(const CodeKernels& kernels, const CodeMatrix& w,
                           const std::vector<float>& a, int64_t tokens, Way way, int64_t part,
                           int64_t threads) {
  std::vector<float> y(static_cast<size_t>(tokens * w.rows), NAN);
  const bool tables = way == Way::kTables;
  const auto prepared = lines(tokens * (tables ? w.tabled_bytes() : w.token_bytes()));
  const int64_t items = tables ? tokens * static_cast<int64_t>(w.tiles.size()) : tokens;
  if (way != Way::kFloat) {
    in_threads(items, 1, threads, [&](int64_t begin, int64_t end) {
      (tables ? kernels.prepare_tables : kernels.prepare)(w, a.data(), begin, end, prepared.get());
    });
  }
  in_threads(w.rows, part, threads, [&](int64_t begin, int64_t end) {
    if (way == Way::kFloat) {
      kernels.multiply_float(w, a.data(), tokens, y.data(), w.rows, begin, end);
    } else {
      (tables ? kernels.look_up : kernels.multiply)(w, prepared.get(), tokens, y.data(), w.rows,
                                                    begin, end);
    }
  });
  return y;
}

void test_case(const Case& one, int64_t tokens) {
  const PackedCodes packed(one.stored);
  const CodeMatrix& w = packed.matrix();
  const int64_t all = (w.rows + kCodeRows - 1) / kCodeRows * kCodeRows;
  std::vector<float> a(static_cast<size_t>(tokens * w.columns));
  for (float& value : a) value = static_cast<float>(drawn(-9999, 9999)) * 1e-3f;
  if (tokens > 1) std::fill_n(a.begin(), w.columns, 0.0f);
  const auto generic = [&](Way way) {
    return product(code_kernels_generic(), w, a, tokens, way, all, 1);
  };
  const std::vector<float> wanted = generic(Way::kPanels), floats = generic(Way::kFloat);
  for (const CodeKernels* kernels : all_kernels()) {
    const std::string what =
        std::string(kernels->name) + ", " + one.text() + ", " + std::to_string(tokens) + " tokens";
    for (int64_t threads : {1, 3}) {
      const int64_t part = threads == 1 ? all : kCodeRows;
      expect(product(*kernels, w, a, tokens, Way::kPanels, part, threads) == wanted,
             what + ": panels differ");
      if (kernels->look_up != nullptr && w.table_books != nullptr) {
        expect(product(*kernels, w, a, tokens, Way::kTables, part, threads) == wanted,
               what + ": tables differ");
      }
      const std::vector<float> y = product(*kernels, w, a, tokens, Way::kFloat, part, threads);
      double worst = 0, largest = 0;
      for (size_t at = 0; at < y.size(); ++at) {
        worst = std::max(worst, std::fabs(static_cast<double>(y[at]) - floats[at]));
        largest = std::max(largest, std::fabs(static_cast<double>(floats[at])));
      }
      expect(worst <= 1e-4 * largest, what + ": products in float32 differ");
    }
  }
}

// The arrays of one fuzzed call; memory ends where the shapes say.
struct Arrays {
  std::vector<std::vector<char>> memory;
  std::vector<Tensor> tensors;

  void add(std::vector<int64_t> shape, size_t size) {
    Tensor tensor{nullptr, std::move(shape)};
    memory.emplace_back(static_cast<size_t>(tensor.count()) * size);
    for (char& byte : memory.back()) byte = static_cast<char>(engine());
    tensor.data = memory.back().data();
    tensors.push_back(std::move(tensor));
  }
};

// A size that is right, or one beside it.
int64_t near(int64_t size) {
  return drawn(0, 24) != 0 ? size : std::max<int64_t>(0, drawn(-2, 2) + size);
}

bool fuzz_once() {
  const int64_t dimension = int64_t{1} << drawn(0, 3), books = drawn(1, 3);
  const int64_t bits = drawn(0, 2) * 2 + 4, rows = drawn(1, 150), runs = drawn(1, 40);
  const int64_t columns = runs * dimension, group = drawn(1, runs + 1) * dimension;
  const int64_t block_rows = drawn(1, 3) * kCodeRows, width = drawn(1, runs + 1) * dimension;
  const int64_t groups = (columns + group - 1) / group;
  Arrays arrays;
  arrays.add({near(rows), near((runs * books * bits + 7) / 8)}, 1);
  arrays.add({near((rows + block_rows - 1) / block_rows), near((columns + width - 1) / width),
              near(books), int64_t{1} << bits, dimension},
             1);
  arrays.add({drawn(0, 1) == 0 ? 1 : near(rows), near(groups)}, 2);
  const Attributes attributes("MatMulCodebook",
                              {{"rows", near(rows)},
                               {"columns", near(columns)},
                               {"dimension", near(dimension)},
                               {"bits", near(bits)},
                               {"books", near(books)},
                               {"group", near(group)},
                               {"block_rows", near(block_rows)},
                               {"block_columns", near(width)},
                               {"activation_bits", near(drawn(0, 1) == 0 ? 8 : 32)}});
  try {
    const ort::CodebookWeights weights(attributes, arrays.tensors);
    for (int64_t tokens : {1, 7}) {
      const std::vector<float> a(static_cast<size_t>(tokens * weights.columns()), 1.0f);
      std::vector<float> y(static_cast<size_t>(tokens * weights.rows()));
      const auto prepared = lines(static_cast<int64_t>(weights.prepared_size(tokens)));
      if (weights.prepared_size(tokens) != 0) {
        weights.prepare(a.data(), tokens, 0, weights.prepared_items(tokens), prepared.get());
      }
      weights.multiply(a.data(), prepared.get(), tokens, y.data(), weights.rows(), 0,
                       weights.rows());
    }
    return true;
  } catch (const ort::InvalidArgument& error) {
    expect(std::strncmp(error.what(), "MatMulCodebook: ", 16) == 0, error.what());
    return false;
  }
}

void fuzz(int times) {
  int passed = 0;
  for (int time = 0; time < times; ++time) passed += fuzz_once();
  expect(passed > times / 4 && passed < 7 * times / 8,
         "of " + std::to_string(times) + " fuzzed weights " + std::to_string(passed) + " pass");
}

}  // namespace

int main() {
  for (int dimension : {1, 2, 4, 8}) {
    for (int bits : {4, 6, 8}) {
      for (int books : {1, 2, 3}) {
        const int most = 258 / dimension < 127 ? 258 / dimension : 127;
        const int64_t wide = 75 * dimension;
        test_case(Case(130, wide, dimension, bits, books, wide, 130, wide, most), drawn(1, 9));
        test_case(Case(330, wide, dimension, bits, books, 5 * dimension, 64, 7 * dimension, most),
                  2);
      }
    }
    test_case(Case(70, 24 * dimension, dimension, 12, 2, 8, 70, 24 * dimension, 127), 3);
    test_case(Case(1, dimension, dimension, 8, 1, dimension, 1, dimension, 127), 1);
  }
  test_case(Case(65, 1056, 8, 16, 1, 1056, 65, 1056, 127), 2);
  test_case(Case(65, 64, 4, 8, 16, 64, 65, 64, 60), 261);
  fuzz(1000);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
