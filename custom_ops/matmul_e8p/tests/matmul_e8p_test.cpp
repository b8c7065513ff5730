// Runs every kernel of MatMulE8P over odd shapes on exactly sized buffers, for the sanitizers, and
// checks that instruction sets, portions of rows and threads agree; then feeds the checks of the
// operator with arrays and attributes that are wrong, and multiplies by those that pass. The values
// themselves are judged against float64 by tests/custom_ops/test_matmul_e8p.py.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../cpu/cpu.h"
#include "../e8p_weights.h"

namespace {

using namespace onnxq;
using ort::Attributes;
using ort::Tensor;

int failures = 0;
std::mt19937 engine(11);

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "%s\n", what.c_str());
}

int64_t drawn(int64_t lowest, int64_t highest) {
  return std::uniform_int_distribution<int64_t>(lowest, highest)(engine);
}

std::vector<const E8pKernels*> all_kernels() {
  std::vector<const E8pKernels*> found;
  const auto add = [&](Instructions needed, const E8pKernels* kernels) {
    if (instructions() >= needed && kernels != nullptr) found.push_back(kernels);
  };
  add(Instructions::kGeneric, &e8p_kernels_generic());
  add(Instructions::kAvx2, e8p_kernels_avx2());
  add(Instructions::kAvx512, e8p_kernels_avx512());
  add(Instructions::kVnni, e8p_kernels_vnni());
  return found;
}

// At the start of a cache line, as the operator gives it.
std::unique_ptr<uint8_t, decltype(&std::free)> lines(int64_t size) {
  const size_t whole = static_cast<size_t>((size + 63) / 64 * 64);
  return {static_cast<uint8_t*>(std::aligned_alloc(64, whole)), &std::free};
}

std::vector<float> product(const E8pKernels& kernels, const E8pMatrix& w, bool is_rounded,
                           const std::vector<float>& a, int64_t tokens, int64_t part, int threads) {
  const E8pWay& way = is_rounded ? kernels.rounded : kernels.plain;
  const auto prepared = lines(tokens * (is_rounded ? E8pToken(w).stride : e8p_float_bytes(w)));
  way.prepare(w, a.data(), 0, tokens / 2, prepared.get());
  way.prepare(w, a.data(), tokens / 2, tokens, prepared.get());
  std::vector<float> y(static_cast<size_t>(tokens * w.rows), NAN);
  const auto work = [&](int64_t first) {
    for (int64_t begin = first * part; begin < w.rows; begin += threads * part) {
      const int64_t end = begin + part < w.rows ? begin + part : w.rows;
      way.multiply(w, prepared.get(), tokens, y.data(), w.rows, begin, end);
    }
  };
  std::vector<std::thread> workers;
  for (int64_t first = 1; first < threads; ++first) workers.emplace_back(work, first);
  work(0);
  for (std::thread& worker : workers) worker.join();
  return y;
}

// What the points of the book say, in doubles: of tokens that are whole numbers up to 127, which
// rounding leaves as they are.
double plainly(const StoredE8p& stored, const float* a, int64_t row) {
  const E8pBook& book = e8p_book();
  double sum = 0;
  const uint8_t* code = stored.codes + row * stored.columns / 8 * stored.bits;
  for (int64_t column = 0; column < stored.columns; column += 8, code += stored.bits) {
    int8_t first[8], second[8] = {};
    const auto word = [](const uint8_t* at) { return static_cast<uint16_t>(at[0] | at[1] << 8); };
    const E8pGains ones = {1, 1, 4.0f};
    book.weights(word(code), stored.bits == 2 ? kE8pGains : ones, first);
    if (stored.bits == 4) book.weights(word(code + 2), ones, second);
    for (int at = 0; at < 8; ++at) {
      const int number = stored.bits == 2   ? first[at]
                         : stored.bits == 3 ? first[at] + book.bit[code[2]][at]
                                            : 7 * first[at] + 2 * second[at];
      sum += static_cast<double>(number) * a[column + at];
    }
  }
  return sum / (stored.bits == 3 ? 4 : 28) * stored.scales[row];
}

void test_case(int64_t rows, int64_t columns, int bits, int64_t tokens) {
  std::vector<uint8_t> codes(static_cast<size_t>(rows * columns / 8 * bits));
  for (uint8_t& code : codes) code = static_cast<uint8_t>(engine());
  std::vector<float> scales(static_cast<size_t>(rows)), a(static_cast<size_t>(tokens * columns));
  for (float& scale : scales) scale = static_cast<float>(drawn(1, 1000)) * 1e-3f;
  for (float& value : a) value = static_cast<float>(drawn(-127, 127));
  for (int64_t token = 0; token < tokens; ++token) a[static_cast<size_t>(token * columns)] = 127;
  const StoredE8p stored = {rows, columns, bits, codes.data(), scales.data(), rows};
  const PackedE8p packed(stored);
  const E8pMatrix& w = packed.matrix();
  const int64_t all = (rows + 7) / 8 * 8;
  for (const bool is_rounded : {true, false}) {
    const std::vector<float> first =
        product(e8p_kernels_generic(), w, is_rounded, a, tokens, all, 1);
    for (const E8pKernels* kernels : all_kernels()) {
      const std::string what = std::string(kernels->name) + (is_rounded ? ", rounded, " : ", ") +
                               std::to_string(rows) + " x " + std::to_string(columns) + ", " +
                               std::to_string(bits) + " bits, " + std::to_string(tokens);
      const std::vector<float> y = product(*kernels, w, is_rounded, a, tokens, all, 1);
      for (int64_t token = 0; token < tokens; ++token) {
        for (int64_t row = 0; row < rows; ++row) {
          const double wanted = plainly(stored, a.data() + token * columns, row);
          const double found = y[static_cast<size_t>(token * rows + row)];
          expect(std::fabs(found - wanted) <= 1e-3 + 1e-5 * std::fabs(wanted),
                 what + ": is not the product");
        }
      }
      if (is_rounded) expect(y == first, what + ": differs from generic");
      expect(y == product(*kernels, w, is_rounded, a, tokens, 8, 3),
             what + ": parts and threads differ");
    }
  }
}

// A size that is right, or one beside it.
int64_t near(int64_t size) { return drawn(0, 9) != 0 ? size : size + drawn(-2, 2); }

// Whether what was drawn passed the checks. Memory ends where the shapes say.
bool fuzz_once() {
  const int64_t rows = drawn(1, 20), columns = 8 * drawn(1, 30), bits = drawn(2, 4);
  std::vector<int64_t> shapes[2] = {{near(rows), near(columns / 8 * bits)},
                                    {drawn(0, 1) == 0 ? 1 : near(rows), near(1)}};
  std::vector<std::vector<uint8_t>> memory;
  std::vector<Tensor> arrays;
  for (std::vector<int64_t>& shape : shapes) {
    for (int64_t& size : shape) size = size < 0 ? 0 : size;
    memory.emplace_back(static_cast<size_t>(shape[0] * shape[1] * (arrays.empty() ? 1 : 2)));
    for (uint8_t& byte : memory.back()) byte = static_cast<uint8_t>(engine());
    arrays.push_back({memory.back().data(), shape});
  }
  const Attributes attributes("MatMulE8P", {{"rows", near(rows)},
                                            {"columns", near(columns)},
                                            {"bits", near(bits)},
                                            {"activation_bits", near(drawn(0, 1) ? 8 : 32)}});
  try {
    const ort::E8pWeights weights(attributes, arrays);
    const int64_t tokens = drawn(1, 5);
    std::vector<float> a(static_cast<size_t>(tokens * weights.columns()), 1.0f);
    std::vector<float> y(static_cast<size_t>(tokens * weights.rows()));
    const auto prepared = lines(static_cast<int64_t>(weights.prepared_size(tokens)));
    weights.prepare(a.data(), 0, tokens, prepared.get());
    weights.multiply(a.data(), prepared.get(), tokens, y.data(), weights.rows(), 0, weights.rows());
    return true;
  } catch (const ort::InvalidArgument& error) {
    expect(std::string(error.what()).find("MatMulE8P: ") == 0, error.what());
    return false;
  }
}

}  // namespace

int main() {
  constexpr int64_t kShapes[][2] = {{1, 8}, {7, 64}, {19, 200}, {8, 1160}};
  for (int bits = 2; bits <= 4; ++bits) {
    for (const auto& [rows, columns] : kShapes) {
      for (const int64_t tokens : {1, 2, 7, 131}) test_case(rows, columns, bits, tokens);
    }
  }
  int passed = 0;
  for (int round = 0; round < 2000; ++round) passed += fuzz_once() ? 1 : 0;
  expect(passed > 200 && passed < 1800, "fuzzing reaches both sides of the checks");
  return failures == 0 ? 0 : 1;
}
