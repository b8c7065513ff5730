// Splitting [0, count) over threads: into one contiguous part each, or as each gets free.
#pragma once

#include <algorithm>
#include <atomic>
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

// Starting a thread takes as long as reading millions of numbers once: about a quarter of a
// millisecond. How many are worth it where `count` parts read `numbers` in all.
inline int worker_count(int64_t count, int threads, int64_t numbers) {
  constexpr int64_t kWorthwhile = int64_t{1} << 22;
  const int64_t most = std::max<int64_t>(1, numbers / kWorthwhile);
  return worker_count(count, static_cast<int>(std::min<int64_t>(threads, most)));
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

// Calls visit(index) once for each of [0, count), on any thread: whoever is free takes the next
// few, so that a thread which the system holds up does not hold up the others.
template <class Visit>
void share(int64_t count, int threads, const Visit& visit) {
  const int workers = worker_count(count, threads);
  const int64_t few = std::max<int64_t>(1, count / (8 * int64_t{workers}));
  std::atomic<int64_t> next{0};
  split(workers, workers, [&](int, int64_t, int64_t) {
    for (int64_t begin = next.fetch_add(few); begin < count; begin = next.fetch_add(few)) {
      for (int64_t index = begin; index < std::min(count, begin + few); ++index) visit(index);
    }
  });
}

}  // namespace onnxq
