#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace onnxq {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

int64_t whole(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

uint8_t* Memory::fresh(int64_t bytes) {
  const int64_t unit = bytes < kHugePage ? kCacheLine : kHugePage;
  const size_t all = static_cast<size_t>(whole(bytes, unit));
  bytes_.reset(static_cast<uint8_t*>(std::aligned_alloc(static_cast<size_t>(unit), all)));
  if (bytes_ == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // Whole pages alone: what lies behind the last byte is then never touched. A refusal costs speed.
  if (unit == kHugePage) {
    (void)madvise(bytes_.get(), static_cast<size_t>(bytes / kHugePage * kHugePage), MADV_HUGEPAGE);
  }
#endif
  std::memset(bytes_.get(), 0, static_cast<size_t>(whole(bytes, kCacheLine)));
  return bytes_.get();
}

void Memory::Free::operator()(uint8_t* bytes) const { std::free(bytes); }

}  // namespace onnxq
