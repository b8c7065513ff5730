// Runs every kernel of MatMulTrellis over odd shapes on exactly sized buffers, for the sanitizers,
// and checks that instruction sets and portions of rows agree; then feeds the checks of the
// operator with arrays and attributes that are wrong in every way, and multiplies by those that
// pass. The values themselves are judged against float64 by
// tests/custom_ops/test_matmul_trellis.py.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../cpu/cpu.h"
#include "../trellis_weights.h"

namespace {

using namespace onnxq;
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

std::vector<const TrellisKernels*> all_kernels() {
  std::vector<const TrellisKernels*> found;
  const auto add = [&](Instructions needed, const TrellisKernels* kernels) {
    if (instructions() >= needed && kernels != nullptr) found.push_back(kernels);
  };
  add(Instructions::kGeneric, &trellis_kernels_generic());
  add(Instructions::kAvx2, trellis_kernels_avx2());
  add(Instructions::kAvx512, trellis_kernels_avx512());
  add(Instructions::kVnni, trellis_kernels_vnni());
  return found;
}

// At the start of a cache line, as the operator gives it, and ending where it ends.
std::unique_ptr<uint8_t, decltype(&std::free)> lines(size_t size) {
  return {static_cast<uint8_t*>(std::aligned_alloc(64, (size + 63) / 64 * 64)), &std::free};
}

template <class Work>
std::vector<float> in_parts(const TrellisMatrix& w, int64_t tokens, int64_t part, int threads,
                            const Work& multiply) {
  std::vector<float> y(static_cast<size_t>(tokens * w.rows), NAN);
  const auto work = [&](int64_t first) {
    for (int64_t begin = first * part; begin < w.rows; begin += threads * part) {
      multiply(y.data(), begin, std::min(begin + part, w.rows));
    }
  };
  std::vector<std::thread> workers;
  for (int64_t first = 1; first < threads; ++first) workers.emplace_back(work, first);
  work(0);
  for (std::thread& worker : workers) worker.join();
  return y;
}

void test_case(TrellisCode code, int step_bits, int64_t rows, int64_t columns, int64_t tokens) {
  StoredTrellis stored{rows,    columns, code, step_bits, static_cast<int>(drawn(13, 16)),
                       nullptr, nullptr, rows};
  const int64_t steps = code == TrellisCode::kHyb ? columns / 2 : columns;
  std::vector<uint8_t> codes(static_cast<size_t>(rows * steps * step_bits / 8));
  std::vector<float> scales(static_cast<size_t>(rows));
  for (uint8_t& byte : codes) byte = static_cast<uint8_t>(engine());
  for (float& scale : scales) scale = static_cast<float>(drawn(1, 1000)) * 1e-4f;
  stored.codes = codes.data();
  stored.scales = scales.data();
  const PackedTrellis packed(stored);
  const TrellisMatrix& w = packed.matrix();
  std::vector<float> a(static_cast<size_t>(tokens * columns));
  for (float& value : a) value = static_cast<float>(drawn(-9999, 9999)) * 1e-3f;
  const auto prepared = lines(static_cast<size_t>(tokens * IntToken(w.token_shape()).size));
  int_kernels().prepare(w.token_shape(), a.data(), 0, tokens, prepared.get());
  const int64_t all = (rows + 15) / 16 * 16;
  std::vector<float> wanted[2];
  for (const TrellisKernels* kernels : all_kernels()) {
    for (const bool is_float : {false, true}) {
      const auto multiply = [&](float* y, int64_t begin, int64_t end) {
        if (is_float) return kernels->multiply_float(w, a.data(), tokens, y, rows, begin, end);
        kernels->multiply(w, prepared.get(), tokens, y, rows, begin, end);
      };
      const std::string what = std::string(kernels->name) + (is_float ? ", float, " : ", ") +
                               std::to_string(static_cast<int>(code)) + " of " +
                               std::to_string(step_bits) + " bits, " + std::to_string(rows) +
                               " x " + std::to_string(columns) + ", " + std::to_string(tokens);
      const std::vector<float> y = in_parts(w, tokens, all, 1, multiply);
      if (wanted[is_float].empty()) wanted[is_float] = y;
      double worst = 0, largest = 0;
      for (size_t at = 0; at < y.size(); ++at) {
        worst = std::max(worst, std::fabs(static_cast<double>(y[at]) - wanted[is_float][at]));
        largest = std::max(largest, std::fabs(static_cast<double>(wanted[is_float][at])));
      }
      expect(worst <= 1e-5 * largest, what + ": differs from generic");
      expect(y == in_parts(w, tokens, 16, 3, multiply), what + ": parts and threads differ");
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

// A number that is right, or one beside it.
int64_t near(int64_t number) {
  return drawn(0, 9) != 0 ? number : std::max<int64_t>(0, drawn(-2, 2) + number);
}

bool fuzz_once() {
  const int64_t rows = drawn(1, 40), columns = 16 * drawn(1, 12), code = drawn(0, 2);
  const int64_t step = code == 2 ? drawn(3, 8) : drawn(1, 4);
  Arrays arrays;
  arrays.add({near(rows), near(columns / (code == 2 ? 16 : 8) * step)}, 1);
  arrays.add({drawn(0, 1) == 0 ? 1 : near(rows), near(1)}, 2);
  const ort::Attributes attributes("MatMulTrellis", {{"rows", near(rows)},
                                                     {"columns", near(columns)},
                                                     {"code", near(code)},
                                                     {"step_bits", near(step)},
                                                     {"state_bits", near(15)},
                                                     {"activation_bits", drawn(0, 1) ? 8 : 32}});
  try {
    const ort::TrellisWeights weights(attributes, arrays.tensors);
    std::vector<float> a(static_cast<size_t>(3 * weights.columns()), 1.0f);
    std::vector<float> y(static_cast<size_t>(3 * weights.rows()));
    const auto prepared = lines(weights.prepared_size(3));
    if (weights.prepared_size(3) != 0) weights.prepare(a.data(), 0, 3, prepared.get());
    weights.multiply(a.data(), prepared.get(), 3, y.data(), weights.rows(), 0, weights.rows());
    return true;
  } catch (const ort::InvalidArgument& error) {
    expect(std::strncmp(error.what(), "MatMulTrellis: ", 15) == 0, error.what());
    return false;
  }
}

void fuzz(int times) {
  int passed = 0;
  for (int time = 0; time < times; ++time) passed += fuzz_once();
  expect(passed > times / 5 && passed < 4 * times / 5,
         "of " + std::to_string(times) + " fuzzed weights " + std::to_string(passed) + " pass");
}

}  // namespace

int main() {
  for (const TrellisCode code : {TrellisCode::k1Mad, TrellisCode::k3Inst, TrellisCode::kHyb}) {
    const bool is_pair = code == TrellisCode::kHyb;
    for (int step = is_pair ? 3 : 1; step <= (is_pair ? 8 : 4); ++step) {
      test_case(code, step, 35, 560, drawn(1, 4));
      test_case(code, step, 16, 48, drawn(5, 12));
      test_case(code, step, 1, 16, 1);
      test_case(code, step, 7, 1040, 2);
    }
  }
  fuzz(2000);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
