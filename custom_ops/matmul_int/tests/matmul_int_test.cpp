// Runs every kernel of MatMulInt over odd shapes on exactly sized buffers, for the sanitizers, and
// checks that instruction sets and portions of rows agree; then feeds the checks of the operator
// with arrays and attributes that are wrong in every way, and multiplies by those that pass. The
// values themselves are judged against float64 by tests/custom_ops/test_matmul_int.py.

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
#include "../int_weights.h"

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

std::vector<const IntKernels*> all_kernels() {
  std::vector<const IntKernels*> found;
  const Instructions best = instructions();
  const auto add = [&](Instructions needed, const IntKernels* kernels) {
    if (best >= needed && kernels != nullptr) found.push_back(kernels);
  };
  add(Instructions::kGeneric, &int_kernels_generic());
  add(Instructions::kAvx2, int_kernels_avx2());
  add(Instructions::kAvx512, int_kernels_avx512());
  add(Instructions::kVnni, int_kernels_vnni());
  add(Instructions::kAmx, int_kernels_amx());
  add(Instructions::kDot, int_kernels_dot());
  add(Instructions::kI8mm, int_kernels_i8mm());
  return found;
}

// Arrays of a weight, each in memory of its own that ends where it ends.
struct Case {
  int64_t rows, columns, group;
  int bits;
  bool is_signed, has_ratios;
  std::vector<uint8_t> codes, zeros;
  std::vector<float> scales;
  std::vector<int8_t> ratios;

  Case(int64_t rows, int64_t columns, int64_t group, int bits, bool is_signed, bool has_ratios)
      : rows(rows),
        columns(columns),
        group(group),
        bits(bits),
        is_signed(is_signed),
        has_ratios(has_ratios) {
    const StoredIntegers shape = stored();
    codes.resize(static_cast<size_t>(rows * shape.bytes_of(columns)));
    zeros.resize(is_signed ? 0 : static_cast<size_t>(rows * shape.bytes_of(shape.groups())));
    scales.resize(static_cast<size_t>(has_ratios ? rows : rows * shape.groups()));
    ratios.resize(has_ratios ? static_cast<size_t>(rows * shape.groups()) : 0);
    const int most = is_signed ? 127 >> (bits - 1) : 127 / ((1 << bits) - 1);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(engine());
    for (uint8_t& zero : zeros) zero = static_cast<uint8_t>(engine());
    for (float& scale : scales) scale = static_cast<float>(drawn(-1000, 1000)) * 1e-4f;
    for (int8_t& ratio : ratios) {
      ratio = static_cast<int8_t>(drawn(1, most) * (drawn(0, 1) == 0 ? 1 : -1));
    }
  }

  StoredIntegers stored() const {
    StoredIntegers given{};
    given.rows = rows;
    given.columns = columns;
    given.group = group;
    given.bits = bits;
    given.is_signed = is_signed;
    given.codes = codes.data();
    given.scales = scales.data();
    given.scale_rows = rows;
    given.scale_groups = has_ratios ? 1 : given.groups();
    given.ratios = has_ratios ? ratios.data() : nullptr;
    given.zeros = is_signed ? nullptr : zeros.data();
    given.zero_rows = rows;
    return given;
  }

  std::string text() const {
    return std::to_string(rows) + " x " + std::to_string(columns) + " g" + std::to_string(group) +
           ", " + std::to_string(bits) + " bits" + (is_signed ? " signed" : "") +
           (has_ratios ? " with ratios" : "");
  }
};

// At the start of a cache line, as the operator gives it.
std::unique_ptr<uint8_t, decltype(&std::free)> lines(size_t size) {
  const size_t whole = (size + 63) / 64 * 64;
  return {static_cast<uint8_t*>(std::aligned_alloc(64, whole)), &std::free};
}

std::vector<float> product(const IntKernels& kernels, const IntMatrix& w,
                           const std::vector<float>& a, int64_t tokens, int64_t part, int threads) {
  const int64_t room = (tokens + kernels.tile - 1) / kernels.tile * kernels.tile;
  const auto prepared = lines(static_cast<size_t>(room * IntToken(w).size));
  kernels.prepare(w, a.data(), 0, tokens / 2, prepared.get());
  kernels.prepare(w, a.data(), tokens / 2, tokens, prepared.get());
  std::vector<float> y(static_cast<size_t>(tokens * w.rows), NAN);
  const auto work = [&](int64_t first) {
    for (int64_t begin = first * part; begin < w.rows; begin += threads * part) {
      const int64_t end = begin + part < w.rows ? begin + part : w.rows;
      kernels.multiply(w, prepared.get(), tokens, y.data(), w.rows, begin, end);
    }
  };
  std::vector<std::thread> workers;
  for (int64_t first = 1; first < threads; ++first) workers.emplace_back(work, first);
  work(0);
  for (std::thread& worker : workers) worker.join();
  return y;
}

void test_case(const Case& one, int64_t tokens) {
  const PackedIntegers packed(one.stored());
  const IntMatrix& w = packed.matrix();
  std::vector<float> a(static_cast<size_t>(tokens * w.columns));
  for (float& value : a) value = static_cast<float>(drawn(-9999, 9999)) * 1e-3f;
  if (tokens > 1) std::fill_n(a.begin(), w.columns, 0.0f);
  const std::vector<float> wanted =
      product(int_kernels_generic(), w, a, tokens, (w.rows + 31) / 32 * 32, 1);
  for (const IntKernels* kernels : all_kernels()) {
    const std::string what =
        std::string(kernels->name) + ", " + one.text() + ", " + std::to_string(tokens) + " tokens";
    const std::vector<float> y = product(*kernels, w, a, tokens, (w.rows + 31) / 32 * 32, 1);
    double worst = 0, largest = 0;
    for (size_t at = 0; at < y.size(); ++at) {
      worst = std::max(worst, std::fabs(static_cast<double>(y[at]) - wanted[at]));
      largest = std::max(largest, std::fabs(static_cast<double>(wanted[at])));
    }
    expect(worst <= 1e-4 * largest, what + ": differs from generic");
    if (one.has_ratios) expect(y == wanted, what + ": whole sums differ from generic");
    expect(y == product(*kernels, w, a, tokens, 32, 3), what + ": parts and threads differ");
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
  return drawn(0, 9) != 0 ? size : std::max<int64_t>(0, drawn(-2, 2) + size);
}

template <ElementType kScales>
bool fuzz_once() {
  const bool is_signed = drawn(0, 1) == 1, has_ratios = drawn(0, 1) == 1;
  const int64_t rows = drawn(1, 40), columns = drawn(1, 200), bits = drawn(1, 8);
  const int64_t group = drawn(1, columns + 1), groups = (columns + group - 1) / group;
  const auto bytes = [&](int64_t count) { return (count * bits + 7) / 8; };
  Arrays arrays;
  arrays.add({near(rows), near(bytes(columns))}, 1);
  arrays.add({near(rows), near(has_ratios ? 1 : groups)}, kScales == ElementType::kFloat ? 4 : 2);
  if (has_ratios) {
    arrays.add({near(rows), near(groups)}, 1);
    for (char& ratio : arrays.memory.back()) ratio = static_cast<char>(drawn(-9, 9) ? 1 : 0);
  } else {
    arrays.add({1, 1}, 1);
    arrays.memory.back()[0] = static_cast<char>(near(1));
  }
  arrays.add({is_signed ? 1 : near(rows), is_signed ? 1 : near(bytes(groups))}, 1);
  if (is_signed) arrays.memory.back()[0] = static_cast<char>(near(0));
  const Attributes attributes("MatMulInt", {{"rows", near(rows)},
                                            {"columns", near(columns)},
                                            {"bits", near(bits)},
                                            {"group", near(group)},
                                            {"signed", near(is_signed)},
                                            {"activation_bits", near(8)}});
  try {
    const ort::IntWeights<kScales> weights(attributes, arrays.tensors);
    std::vector<float> a(static_cast<size_t>(3 * weights.columns()), 1.0f);
    std::vector<float> y(static_cast<size_t>(3 * weights.rows()));
    const auto prepared = lines(weights.prepared_size(3));
    weights.prepare(a.data(), 0, 3, prepared.get());
    weights.multiply(a.data(), prepared.get(), 3, y.data(), weights.rows(), 0, weights.rows());
    return true;
  } catch (const ort::InvalidArgument& error) {
    expect(std::strncmp(error.what(), "MatMulInt: ", 11) == 0, error.what());
    return false;
  }
}

void fuzz(int times) {
  int passed = 0;
  for (int time = 0; time < times; ++time) {
    passed += fuzz_once<ElementType::kFloat>() + fuzz_once<ElementType::kFloat16>();
  }
  expect(passed > times / 4 && passed < 7 * times / 4,
         "of " + std::to_string(2 * times) + " fuzzed weights " + std::to_string(passed) + " pass");
}

}  // namespace

int main() {
  for (int bits = 1; bits <= 8; ++bits) {
    for (bool is_signed : {false, true}) {
      for (bool has_ratios : {false, true}) {
        if (has_ratios && bits > 4) continue;
        for (int64_t group : {16, 40, 64, 301}) {
          test_case(Case(75, 300, group, bits, is_signed, has_ratios), drawn(1, 20));
        }
        test_case(Case(1, 1, 1, bits, is_signed, has_ratios), 1);
        test_case(Case(33, 37, 32, bits, is_signed, has_ratios), 2);
        test_case(Case(16, 96, 32, bits, is_signed, has_ratios), 4);
      }
    }
  }
  test_case(Case(40, 200, 64, 4, true, true), 131);
  test_case(Case(40, 200, 64, 4, false, false), 131);
  fuzz(1500);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
