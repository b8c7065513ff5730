// Sums of all of a buffer: how fast this machine reads memory, for tests/bench/roofline.py.
#include <cstddef>
#include <cstdint>

extern "C" uint64_t read_all(const uint64_t* words, size_t count, int repeats) {
  uint64_t sum = 0;
  for (int time = 0; time < repeats; ++time) {
    uint64_t lanes[32] = {};
    for (size_t at = 0; at + 32 <= count; at += 32)
      for (size_t lane = 0; lane < 32; ++lane) lanes[lane] += words[at + lane];
    for (const uint64_t lane : lanes) sum += lane;
    asm volatile("" : "+r"(sum), "+r"(words) : : "memory");  // read again each time
  }
  return sum;
}
