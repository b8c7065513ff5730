#include "cpu.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace onnxq {
namespace {

#ifdef __aarch64__
constexpr const char* kNames[] = {"generic", "dot", "i8mm"};
#else
constexpr const char* kNames[] = {"generic", "avx2", "avx512", "vnni", "amx"};
#endif

#ifdef __x86_64__
bool has_amx() {
#if defined(__linux__)
  unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
  __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  return (edx & kTile) != 0 && (edx & kInt8) != 0 && amx_permitted();
#else
  return false;
#endif
}

Instructions found() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!avx2) return Instructions::kGeneric;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!avx512) return Instructions::kAvx2;
  const bool vnni = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
                    __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bitalg");
  if (!vnni) return Instructions::kAvx512;
  return has_amx() ? Instructions::kAmx : Instructions::kVnni;
}
#elif defined(__aarch64__) && defined(__linux__)
Instructions found() {
  constexpr unsigned long kDotProducts = 1ul << 20, kMatrixProducts = 1ul << 13;
  if ((getauxval(AT_HWCAP) & kDotProducts) == 0) return Instructions::kGeneric;
  const bool has_matrices = (getauxval(AT_HWCAP2) & kMatrixProducts) != 0;
  return has_matrices ? Instructions::kI8mm : Instructions::kDot;
}
#elif defined(__aarch64__) && defined(__APPLE__)
Instructions found() {
  const auto has = [](const char* feature) {
    int value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  if (!has("hw.optional.arm.FEAT_DotProd")) return Instructions::kGeneric;
  return has("hw.optional.arm.FEAT_I8MM") ? Instructions::kI8mm : Instructions::kDot;
}
#else
Instructions found() { return Instructions::kGeneric; }
#endif

}  // namespace

bool amx_permitted() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  thread_local const bool permitted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return permitted;
#else
  return false;
#endif
}

Instructions instructions() {
  static const Instructions best = found();
  const char* cap = std::getenv("ONNXQ_INSTRUCTIONS");
  if (cap == nullptr) return best;
  for (int index = 0; index < static_cast<int>(std::size(kNames)); ++index) {
    if (std::strcmp(cap, kNames[index]) == 0) {
      return std::min(best, static_cast<Instructions>(index));
    }
  }
  return best;
}

}  // namespace onnxq
