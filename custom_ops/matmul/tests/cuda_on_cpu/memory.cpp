// Memory that ends at a page which may not be touched.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>

// Shared memory whose size is told at a launch.
thread_local float onnxq_hadamard_row[227 * 256];

namespace {

struct Mapping {
  void* begin;
  size_t size;
};

std::map<void*, Mapping> mappings;

}  // namespace

extern "C" {

// Aligned as its size is: kernels must not rely on more than an address says.
void* guarded_copy(const void* from, size_t size) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t inner = (size + page - 1) / page * page;
  void* begin =
      mmap(nullptr, inner + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (begin == MAP_FAILED) return nullptr;
  char* end = static_cast<char*>(begin) + inner;
  mprotect(end, page, PROT_NONE);
  mappings[end - size] = {begin, inner + page};
  return std::memcpy(end - size, from, size);
}

void guarded_free(void* at) {
  const Mapping mapping = mappings[at];
  mappings.erase(at);
  munmap(mapping.begin, mapping.size);
}
}
