// Repacks planes of trits on exactly sized buffers and multiplies by every kernel, for the
// sanitizers: results must be those of plain sums; then feeds the checks of the operator with
// arrays and attributes that are wrong in every way, and multiplies by those that pass. The kernels
// themselves are those of matmul_int, and the values are judged against float64 by
// tests/custom_ops/test_matmul_ternary.py.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../cpu/cpu.h"
#include "../ternary_weights.h"

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

// A size that is right, or one beside it.
int64_t near(int64_t size) {
  return drawn(0, 9) != 0 ? size : std::max<int64_t>(0, drawn(-2, 2) + size);
}

// The arrays of one call; memory ends where the shapes say.
struct Arrays {
  std::vector<std::vector<char>> memory;
  std::vector<Tensor> tensors;

  void add(std::vector<int64_t> shape, size_t size) {
    Tensor tensor{nullptr, std::move(shape)};
    memory.emplace_back(static_cast<size_t>(tensor.count()) * size);
    tensor.data = memory.back().data();
    tensors.push_back(std::move(tensor));
  }
};

using Memory = std::unique_ptr<uint8_t, decltype(&std::free)>;

Memory lines(size_t size) {
  return {static_cast<uint8_t*>(std::aligned_alloc(64, (size + 63) / 64 * 64)), &std::free};
}

template <ElementType kScales>
std::vector<float> product(const ort::TernaryWeights<kScales>& weights, const std::vector<float>& a,
                           int64_t tokens) {
  std::vector<float> y(static_cast<size_t>(tokens * weights.rows()), NAN);
  const Memory prepared = lines(weights.prepared_size(tokens));
  weights.prepare(a.data(), 0, tokens / 2, prepared.get());
  weights.prepare(a.data(), tokens / 2, tokens, prepared.get());
  for (int64_t begin = 0; begin < weights.rows(); begin += weights.step()) {
    weights.multiply(a.data(), prepared.get(), tokens, y.data(), weights.rows(), begin,
                     std::min(begin + weights.step(), weights.rows()));
  }
  return y;
}

// A weight with scales of 1 and whole tokens: the products are whole numbers.
void test_product(int64_t rows, int64_t columns, int64_t group, int64_t planes, int64_t tokens) {
  const int64_t groups = (columns + group - 1) / group, bytes = (columns + 4) / 5;
  Arrays arrays;
  arrays.add({rows, planes * bytes}, 1);
  arrays.add({1, planes * groups}, sizeof(float));
  for (char& byte : arrays.memory[0]) byte = static_cast<char>(drawn(0, 242));
  for (int64_t at = 0; at < planes * groups; ++at) arrays.tensors[1].as<float>()[at] = 1;
  std::vector<float> a(static_cast<size_t>(tokens * columns));
  for (float& value : a) value = static_cast<float>(drawn(-127, 127));
  for (int64_t token = 0; token < tokens; ++token) a[static_cast<size_t>(token * columns)] = 127;
  const Attributes attributes("MatMulTernary", {{"rows", rows},
                                                {"columns", columns},
                                                {"group", group},
                                                {"planes", planes},
                                                {"activation_bits", 8}});
  const ort::TernaryWeights<ElementType::kFloat> weights(attributes, arrays.tensors);
  const std::vector<float> y = product(weights, a, tokens);
  const uint8_t* codes = arrays.tensors[0].as<uint8_t>();
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t row = 0; row < rows; ++row) {
      int64_t sum = 0;
      for (int64_t plane = 0; plane < planes; ++plane) {
        for (int64_t at = 0; at < columns; ++at) {
          int digit = codes[(row * planes + plane) * bytes + at / 5];
          for (int64_t place = 0; place < at % 5; ++place) digit /= 3;
          sum +=
              (digit % 3 - 1) * static_cast<int64_t>(a[static_cast<size_t>(token * columns + at)]);
        }
      }
      const float found = y[static_cast<size_t>(token * rows + row)];
      expect(std::fabs(found - static_cast<float>(sum)) <= 1e-3f + 1e-5f * std::fabs(found),
             std::to_string(rows) + " x " + std::to_string(columns) + " g" + std::to_string(group) +
                 ", " + std::to_string(planes) + " planes: row " + std::to_string(row) + " is " +
                 std::to_string(found) + ", not " + std::to_string(sum));
    }
  }
}

template <ElementType kScales>
bool fuzz_once() {
  const int64_t rows = drawn(1, 40), columns = drawn(1, 200), planes = drawn(1, 2);
  const int64_t group = drawn(1, columns + 1), groups = (columns + group - 1) / group;
  Arrays arrays;
  arrays.add({near(rows), near(planes * ((columns + 4) / 5))}, 1);
  arrays.add({drawn(0, 3) != 0 ? near(rows) : 1, near(planes * groups)},
             kScales == ElementType::kFloat ? 4 : 2);
  const int highest = drawn(0, 4) != 0 ? 242 : 255;
  for (char& byte : arrays.memory[0]) byte = static_cast<char>(drawn(0, highest));
  for (char& byte : arrays.memory[1]) byte = static_cast<char>(engine());
  const Attributes attributes("MatMulTernary", {{"rows", near(rows)},
                                                {"columns", near(columns)},
                                                {"group", near(group)},
                                                {"planes", near(planes)},
                                                {"activation_bits", near(8)}});
  try {
    const ort::TernaryWeights<kScales> weights(attributes, arrays.tensors);
    product(weights, std::vector<float>(static_cast<size_t>(3 * weights.columns()), 1.0f), 3);
    return true;
  } catch (const ort::InvalidArgument& error) {
    expect(std::string(error.what()).rfind("MatMulTernary: ", 0) == 0, error.what());
    return false;
  }
}

}  // namespace

int main() {
  for (const char* cap : {"generic", "avx2", "avx512", "vnni", "amx"}) {
    setenv("ONNXQ_INSTRUCTIONS", cap, 1);
    for (int64_t planes = 1; planes <= 2; ++planes) {
      for (int64_t tokens : {1, 2, 17}) {
        test_product(1, 1, 1, planes, tokens);
        test_product(17, 64, 64, planes, tokens);
        test_product(33, 77, 32, planes, tokens);
        test_product(65, 131, 7, planes, tokens);
      }
    }
  }
  unsetenv("ONNXQ_INSTRUCTIONS");
  int passed = 0;
  for (int round = 0; round < 1500; ++round) {
    passed += fuzz_once<ElementType::kFloat>();
    passed += fuzz_once<ElementType::kFloat16>();
  }
  expect(passed > 300 && passed < 2700, std::to_string(passed) + " of 3000 fuzzed calls passed");
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
