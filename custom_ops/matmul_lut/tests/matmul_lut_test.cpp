// Runs every kernel of MatMulLut over odd shapes on exactly sized buffers, for the sanitizers, and
// checks that instruction sets and portions of rows agree; then feeds the checks of the operator
// with arrays and attributes that are wrong in every way, and multiplies by those that pass. The
// values themselves are judged against float64 by tests/custom_ops/test_matmul_lut.py.

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
#include "../lut_weights.h"

namespace {

using namespace onnxq;
using ort::Attributes;
using ort::ElementType;
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

std::vector<const LutKernels*> all_kernels() {
  std::vector<const LutKernels*> found;
  const Instructions best = instructions();
  const auto add = [&](Instructions needed, const LutKernels* kernels) {
    if (best >= needed && kernels != nullptr) found.push_back(kernels);
  };
  add(Instructions::kGeneric, &lut_kernels_generic());
  add(Instructions::kAvx2, lut_kernels_avx2());
  add(Instructions::kAvx512, lut_kernels_avx512());
  add(Instructions::kVnni, lut_kernels_vnni());
  add(Instructions::kDot, lut_kernels_dot());
  return found;
}

uint16_t half() { return static_cast<uint16_t>(0x3000 | drawn(0, 0x3ff) | drawn(0, 1) << 15); }

// Arrays of a weight, each in memory of its own that ends where it ends.
struct Case {
  int64_t rows, columns, group;
  int bits;
  bool has_tables;  // for each group, not one
  std::vector<uint8_t> codes;
  std::vector<int8_t> entries;
  std::vector<uint16_t> scales;

  Case(int64_t rows, int64_t columns, int64_t group, int bits, bool has_tables)
      : rows(rows), columns(columns), group(group), bits(bits), has_tables(has_tables) {
    const StoredLut shape = stored();
    codes.resize(static_cast<size_t>(rows * shape.row_bytes()));
    entries.resize(static_cast<size_t>(shape.lut_rows * shape.lut_groups) << bits);
    scales.resize(static_cast<size_t>(rows * shape.groups()));
    for (uint8_t& code : codes) code = static_cast<uint8_t>(engine());
    for (int8_t& entry : entries) entry = static_cast<int8_t>(engine());
    for (uint16_t& scale : scales) scale = half();
  }

  StoredLut stored() const {
    StoredLut given{};
    given.rows = rows;
    given.columns = columns;
    given.group = group;
    given.bits = bits;
    given.codes = codes.data();
    given.entries = entries.data();
    given.scales = scales.data();
    given.lut_rows = has_tables ? rows : 1;
    given.lut_groups = has_tables ? given.groups() : 1;
    given.scale_rows = rows;
    given.scale_groups = given.groups();
    return given;
  }

  std::string text() const {
    return std::to_string(rows) + " x " + std::to_string(columns) + " g" + std::to_string(group) +
           ", " + std::to_string(bits) + " bits" + (has_tables ? " with tables" : "");
  }
};

// At the start of a cache line, as the operator gives it.
std::unique_ptr<uint8_t, decltype(&std::free)> lines(size_t size) {
  const size_t whole = (size + 63) / 64 * 64;
  return {static_cast<uint8_t*>(std::aligned_alloc(64, whole)), &std::free};
}

std::vector<float> product(const LutKernels& kernels, const StoredLut& stored, bool rounds,
                           const std::vector<float>& a, int64_t tokens, int64_t part, int threads) {
  const PackedLut packed(stored, rounds, kernels.offset);
  const LutMatrix& w = packed.matrix();
  const LutToken layout(w);
  const auto prepared = lines(rounds ? static_cast<size_t>(tokens * layout.size) : 0);
  for (int64_t token = 0; rounds && token < tokens; ++token) {
    kernels.round(layout, a.data() + token * w.columns, prepared.get() + token * layout.size);
  }
  std::vector<float> y(static_cast<size_t>(tokens * w.rows), NAN);
  const auto work = [&](int64_t first) {
    for (int64_t begin = first * part; begin < w.rows; begin += threads * part) {
      const int64_t end = begin + part < w.rows ? begin + part : w.rows;
      if (rounds) {
        lut_multiply(w, kernels, prepared.get(), tokens, y.data(), w.rows, begin, end);
      } else {
        lut_multiply_float(w, kernels, a.data(), tokens, y.data(), w.rows, begin, end);
      }
    }
  };
  std::vector<std::thread> workers;
  for (int64_t first = 1; first < threads; ++first) workers.emplace_back(work, first);
  work(0);
  for (std::thread& worker : workers) worker.join();
  return y;
}

void test_case(const Case& one, int64_t tokens) {
  const StoredLut stored = one.stored();
  const int64_t all = (one.rows + kLutRows - 1) / kLutRows * kLutRows;
  std::vector<float> a(static_cast<size_t>(tokens * one.columns));
  for (float& value : a) value = static_cast<float>(drawn(-9999, 9999)) * 1e-3f;
  if (tokens > 1) std::fill_n(a.begin(), one.columns, 0.0f);
  for (bool rounds : {true, false}) {
    const std::vector<float> wanted =
        product(lut_kernels_generic(), stored, rounds, a, tokens, all, 1);
    for (const LutKernels* kernels : all_kernels()) {
      const std::string what = std::string(kernels->name) + ", " + one.text() + ", " +
                               std::to_string(tokens) + (rounds ? " tokens" : " float tokens");
      const std::vector<float> y = product(*kernels, stored, rounds, a, tokens, all, 1);
      double worst = 0, largest = 0;
      for (size_t at = 0; at < y.size(); ++at) {
        worst = std::max(worst, std::fabs(static_cast<double>(y[at]) - wanted[at]));
        largest = std::max(largest, std::fabs(static_cast<double>(wanted[at])));
      }
      expect(worst <= 1e-5 * largest, what + ": differs from generic");
      expect(y == product(*kernels, stored, rounds, a, tokens, kLutRows, 3),
             what + ": parts and threads differ");
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
  return drawn(0, 14) != 0 ? size : std::max<int64_t>(0, drawn(-2, 2) + size);
}

template <ElementType kTable>
bool fuzz_once() {
  const int64_t rows = drawn(1, 30), columns = drawn(1, 300), bits = drawn(1, 4);
  const int64_t group = std::initializer_list<int64_t>{16, 32, 64, 128, 300}.begin()[drawn(0, 4)];
  const int64_t groups = (columns + group - 1) / group;
  const auto shared = [](int64_t size) { return drawn(0, 1) == 0 ? 1 : near(size); };
  Arrays arrays;
  arrays.add({near(rows), near((columns * bits + 7) / 8)}, 1);
  arrays.add({shared(rows), shared(groups), near(int64_t{1} << bits)},
             kTable == ElementType::kInt8 ? 1 : 2);
  arrays.add({shared(rows), shared(groups)}, 2);
  const int64_t a_bits = kTable == ElementType::kInt8 && drawn(0, 1) == 0 ? 8 : 32;
  const Attributes attributes("MatMulLut", {{"rows", near(rows)},
                                            {"columns", near(columns)},
                                            {"bits", near(bits)},
                                            {"group", near(group)},
                                            {"activation_bits", near(a_bits)}});
  try {
    const ort::LutWeights<kTable> weights(attributes, arrays.tensors);
    std::vector<float> a(static_cast<size_t>(3 * weights.columns()), 1.0f);
    std::vector<float> y(static_cast<size_t>(3 * weights.rows()));
    const auto prepared = lines(weights.prepared_size(3));
    if (weights.prepared_size(3) > 0) weights.prepare(a.data(), 0, 3, prepared.get());
    weights.multiply(a.data(), prepared.get(), 3, y.data(), weights.rows(), 0, weights.rows());
    return true;
  } catch (const ort::InvalidArgument& error) {
    expect(std::strncmp(error.what(), "MatMulLut: ", 11) == 0, error.what());
    return false;
  }
}

void fuzz(int times) {
  int passed = 0;
  for (int time = 0; time < times; ++time) {
    passed += fuzz_once<ElementType::kInt8>() + fuzz_once<ElementType::kFloat16>();
  }
  expect(passed > times / 4 && passed < 7 * times / 4,
         "of " + std::to_string(2 * times) + " fuzzed weights " + std::to_string(passed) + " pass");
}

}  // namespace

int main() {
  for (int bits = 1; bits <= 4; ++bits) {
    for (bool has_tables : {false, true}) {
      for (int64_t group : {16, 32, 64, 128, 1290}) {
        if (has_tables && group < 64) continue;
        test_case(Case(7, 1290, group, bits, has_tables), drawn(1, 9));
        test_case(Case(13, 77, group, bits, has_tables), drawn(1, 2));
      }
      test_case(Case(1, 1, 1, bits, has_tables), 1);
    }
  }
  test_case(Case(10, 200, 64, 4, true), 131);
  fuzz(1500);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
