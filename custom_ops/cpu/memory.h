// Memory of weights, which products read again and again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace onnxq {

constexpr int64_t kCacheLine = 64;

// Starts at a cache line. What is large is asked to lie on huge pages: a product with one token
// reads every byte once, and would wait for the address of each small page.
class Memory {
 public:
  // Room for so many items, which are zero; what was held before is freed.
  template <class Item>
  Item* zeros(int64_t count) {
    return reinterpret_cast<Item*>(fresh(count * static_cast<int64_t>(sizeof(Item))));
  }

 private:
  uint8_t* fresh(int64_t bytes);

  struct Free {
    void operator()(uint8_t* bytes) const;
  };
  std::unique_ptr<uint8_t, Free> bytes_;
};

}  // namespace onnxq
