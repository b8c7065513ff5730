// Runs every kernel over odd shapes on exactly sized buffers, for the sanitizers, and checks that
// instruction sets, portions of rows and working in place give the same bits where they must. The
// values themselves are judged against NumPy by tests/custom_ops.

#include "../hadamard.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <random>
#include <vector>

namespace {

using onnxq::HadamardKernels;
using onnxq::HadamardSize;

int failures = 0;

void expect(bool holds, const char* what, const char* kernels, int64_t factor, int64_t power) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "%s: %s differs: %lld x %lld\n", kernels, what,
               static_cast<long long>(factor), static_cast<long long>(power));
}

std::vector<float> values(int64_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> drawn(static_cast<size_t>(count));
  for (float& value : drawn) value = normal(engine);
  return drawn;
}

std::vector<float> run(const HadamardKernels& kernels, const std::vector<float>& x, int64_t rows,
                       HadamardSize size, const std::vector<float>& factor, bool in_place) {
  const size_t width = static_cast<size_t>(size.factor * size.power);
  std::vector<float> y = in_place ? x : std::vector<float>(x.size());
  std::vector<float> scratch(size.factor > 1 ? width : 0);
  kernels.transform(in_place ? y.data() : x.data(), y.data(), rows, size,
                    size.factor > 1 ? factor.data() : nullptr, scratch.data());
  return y;
}

void test_transform(int64_t rows, HadamardSize size) {
  const int64_t width = size.factor * size.power;
  const std::vector<float> x = values(rows * width, 3),
                           factor = values(size.factor * size.factor, 4);
  std::vector<float> plain, fused;
  for (const HadamardKernels* kernels :
       {onnxq::hadamard_kernels_generic(), onnxq::hadamard_kernels_avx2(),
        onnxq::hadamard_kernels_avx512(), onnxq::hadamard_kernels_neon()}) {
    if (!kernels) continue;
    const auto check = [&](bool holds, const char* what) {
      expect(holds, what, kernels->name, size.factor, size.power);
    };
    const std::vector<float> y = run(*kernels, x, rows, size, factor, false);
    check(y == run(*kernels, x, rows, size, factor, true), "in place");
    const bool generic = kernels == onnxq::hadamard_kernels_generic();
    if (generic) plain = y;
    if (size.factor == 1) check(y == plain, "instruction set");
    if (!generic && fused.empty()) fused = y;
    if (!generic) check(y == fused, "instruction set with fused multiply-add");
    for (int64_t row = 0; row < rows; ++row) {
      const std::vector<float> one(x.begin() + row * width, x.begin() + (row + 1) * width);
      const std::vector<float> alone = run(*kernels, one, 1, size, factor, false);
      check(std::memcmp(alone.data(), y.data() + row * width, alone.size() * sizeof(float)) == 0,
            "row alone");
    }
  }
}

// Every float16 widened and narrowed is itself (NaN made quiet); narrowing rounds alike everywhere.
void test_halves(int64_t count) {
  std::vector<uint16_t> every(65536), back(65536), wanted, generic(static_cast<size_t>(count));
  for (size_t index = 0; index < every.size(); ++index) every[index] = static_cast<uint16_t>(index);
  std::vector<float> singles(65536), drawn = values(count, 5);
  for (size_t index = 0; index < drawn.size(); ++index) {
    drawn[index] = std::ldexp(drawn[index], static_cast<int>(index % 44) - 28);
  }
  for (const HadamardKernels* kernels :
       {onnxq::hadamard_kernels_generic(), onnxq::hadamard_kernels_avx2(),
        onnxq::hadamard_kernels_avx512(), onnxq::hadamard_kernels_neon()}) {
    if (!kernels) continue;
    kernels->widen(every.data(), singles.data(), 65536);
    kernels->narrow(singles.data(), back.data(), 65536);
    bool same = true;
    for (size_t index = 0; index < every.size(); ++index) {
      const bool nan = (every[index] & 0x7fff) > 0x7c00;
      same = same && back[index] == (nan ? every[index] | 0x200 : every[index]);
    }
    expect(same, "float16 there and back", kernels->name, 0, 0);
    std::vector<uint16_t> halves(static_cast<size_t>(count));
    kernels->narrow(drawn.data(), halves.data(), count);
    if (wanted.empty()) wanted = halves;
    expect(halves == wanted, "rounding to float16", kernels->name, count, 0);
  }
}

}  // namespace

int main() {
  for (int64_t power = 1; power <= 16384; power *= 2) test_transform(3, {1, power});
  for (int64_t factor : {2, 3, 5, 9, 12, 13, 20, 28, 36}) {
    for (int64_t power : {1, 2, 4, 8, 16, 32, 64, 128, 1024}) test_transform(2, {factor, power});
  }
  test_transform(0, {1, 64});
  test_transform(0, {12, 64});
  for (int64_t count : {1, 7, 8, 15, 16, 17, 4099}) test_halves(count);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
