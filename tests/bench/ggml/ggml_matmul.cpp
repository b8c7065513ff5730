// One or several weights times the same activations in ggml, as llama.cpp computes them: its thread
// pool, its graph, and its repacked layouts where they are asked for and there is one.
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace {

constexpr int64_t kEncodedRows = 32;  // the others repeat them

// The layout that ggml moves weights of this kind into, or null.
ggml_backend_buffer_type_t repacked_type(const ggml_tensor* product) {
  ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  auto list =
      reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
          ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
  if (list == nullptr) return nullptr;
  for (ggml_backend_buffer_type_t* type = list(device); type != nullptr && *type; ++type) {
    ggml_tensor* weight = product->src[0];
    weight->buffer = ggml_backend_buft_alloc_buffer(*type, 0);
    const bool is_taken = ggml_backend_dev_supports_op(device, product);
    ggml_backend_buffer_free(weight->buffer);
    weight->buffer = nullptr;
    if (is_taken) return *type;
  }
  return nullptr;
}

std::vector<uint8_t> random_weight(const ggml_tensor* weight) {
  const int64_t columns = weight->ne[0], rows = weight->ne[1];
  std::mt19937 engine(0);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(kEncodedRows * columns));
  for (float& value : values) value = normal(engine);
  const std::vector<float> importance(static_cast<size_t>(columns), 1.0f);
  std::vector<uint8_t> bytes(ggml_nbytes(weight));
  const size_t row = ggml_row_size(weight->type, columns);
  const int64_t encoded = rows < kEncodedRows ? rows : kEncodedRows;
  ggml_quantize_chunk(weight->type, values.data(), bytes.data(), 0, encoded, columns,
                      importance.data());
  for (int64_t at = encoded; at < rows; ++at)
    std::memcpy(bytes.data() + static_cast<size_t>(at) * row,
                bytes.data() + static_cast<size_t>(at % encoded) * row, row);
  return bytes;
}

struct Matmul {
  ggml_context* context = nullptr;
  ggml_backend_t backend = nullptr;
  ggml_threadpool_t pool = nullptr;
  ggml_cgraph* graph = nullptr;
  ggml_tensor* product = nullptr;
  std::vector<ggml_backend_buffer_t> buffers;
  size_t stored = 0;  // bytes of all weights

  ~Matmul() {
    for (ggml_backend_buffer_t buffer : buffers) ggml_backend_buffer_free(buffer);
    if (backend != nullptr) ggml_backend_free(backend);
    if (pool != nullptr) ggml_threadpool_free(pool);
    if (context != nullptr) ggml_free(context);
  }

  bool place(ggml_tensor* tensor, ggml_backend_buffer_type_t type, const void* bytes) {
    ggml_backend_buffer_t buffer =
        ggml_backend_buft_alloc_buffer(type, ggml_backend_buft_get_alloc_size(type, tensor));
    if (buffer == nullptr) return false;
    buffers.push_back(buffer);
    ggml_backend_tensor_alloc(buffer, tensor, ggml_backend_buffer_get_base(buffer));
    if (bytes != nullptr) ggml_backend_tensor_set(tensor, bytes, 0, ggml_nbytes(tensor));
    return true;
  }
};

ggml_type type_named(const char* name) {
  for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
    const char* other = ggml_type_name(static_cast<ggml_type>(type));
    if (other != nullptr && std::strcmp(other, name) == 0) return static_cast<ggml_type>(type);
  }
  return GGML_TYPE_COUNT;
}

}  // namespace

extern "C" {

// Null where ggml has no such type, the type has no such layout, or rows are not whole blocks.
void* ggml_matmul_new(const char* name, int64_t rows, int64_t columns, int64_t tokens, int threads,
                      int repacked, int weights) {
  const ggml_type type = type_named(name);
  if (type == GGML_TYPE_COUNT || columns % ggml_blck_size(type) != 0) return nullptr;
  ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  auto matmul = std::make_unique<Matmul>();
  const size_t nodes = static_cast<size_t>(weights);
  const size_t room = ggml_tensor_overhead() * (2 * nodes + 8) +
                      ggml_graph_overhead_custom(2 * nodes + 8, false) + 4096;
  matmul->context = ggml_init({room, nullptr, true});
  matmul->backend = ggml_backend_cpu_init();
  ggml_threadpool_params parameters = ggml_threadpool_params_default(threads);
  matmul->pool = ggml_threadpool_new(&parameters);
  ggml_backend_cpu_set_n_threads(matmul->backend, threads);
  ggml_backend_cpu_set_threadpool(matmul->backend, matmul->pool);
  matmul->graph = ggml_new_graph_custom(matmul->context, 2 * nodes + 8, false);

  ggml_backend_buffer_type_t plain = ggml_backend_cpu_buffer_type();
  ggml_tensor* input = ggml_new_tensor_2d(matmul->context, GGML_TYPE_F32, columns, tokens);
  std::vector<float> values(static_cast<size_t>(columns * tokens));
  std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  for (float& value : values) value = normal(engine);
  if (!matmul->place(input, plain, values.data())) return nullptr;

  std::vector<uint8_t> bytes;
  for (int at = 0; at < weights; ++at) {
    ggml_tensor* weight = ggml_new_tensor_2d(matmul->context, type, columns, rows);
    if (at == 0) bytes = random_weight(weight);
    ggml_tensor* product = ggml_mul_mat(matmul->context, weight, input);
    ggml_backend_buffer_type_t where = repacked != 0 ? repacked_type(product) : plain;
    if (where == nullptr || !matmul->place(weight, where, bytes.data()) ||
        !matmul->place(product, plain, nullptr))
      return nullptr;
    matmul->stored += bytes.size();
    matmul->product = product;
    ggml_build_forward_expand(matmul->graph, product);
  }
  return matmul.release();
}

int ggml_matmul_run(void* matmul) {
  auto* one = static_cast<Matmul*>(matmul);
  return ggml_backend_graph_compute(one->backend, one->graph);
}

// All products of the last weight, [tokens, rows].
void ggml_matmul_read(void* matmul, float* y) {
  const ggml_tensor* product = static_cast<Matmul*>(matmul)->product;
  ggml_backend_tensor_get(product, y, 0, ggml_nbytes(product));
}

int64_t ggml_matmul_bytes(void* matmul) {
  return static_cast<int64_t>(static_cast<Matmul*>(matmul)->stored);
}

void ggml_matmul_free(void* matmul) { delete static_cast<Matmul*>(matmul); }

}  // extern "C"
