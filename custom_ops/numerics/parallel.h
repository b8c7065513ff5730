// Splitting [0, count) into one contiguous part per thread.
#pragma once

#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace onnxq {

// How many threads are worth starting for `count` parts.
inline int worker_count(int64_t count, int threads) {
  if (threads < 1) return 1;
  return count < threads ? (count < 1 ? 1 : static_cast<int>(count)) : threads;
}

// Calls work(worker, begin, end) once per worker, the last one on the calling thread. A part whose
// thread the system refuses to start runs on the calling thread too.
template <class Work>
void split(int64_t count, int workers, const Work& work) {
  std::vector<std::thread> pool;
  pool.reserve(static_cast<size_t>(workers));
  for (int worker = 0; worker < workers; ++worker) {
    const int64_t begin = count * worker / workers, end = count * (worker + 1) / workers;
    if (worker + 1 < workers) {
      try {
        pool.emplace_back([&work, worker, begin, end] { work(worker, begin, end); });
        continue;
      } catch (const std::system_error&) {
        // fall through: no thread to be had
      }
    }
    work(worker, begin, end);
  }
  for (std::thread& thread : pool) thread.join();
}

}  // namespace onnxq
