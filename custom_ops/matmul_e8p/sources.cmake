onnxq_kernels(
  e8p_book.cpp
  e8p_decode.cpp
  e8p_nearest.cpp
  e8p_nearest_avx2.cpp
  e8p_nearest_avx512.cpp
  e8p_nearest_generic.cpp
  e8p_stored.cpp
  matmul_e8p_avx2.cpp
  matmul_e8p_avx512.cpp
  matmul_e8p_generic.cpp
  matmul_e8p_vnni.cpp)
onnxq_operator(matmul_e8p_ort.cpp)
onnxq_python(e8p_python.cpp)
onnxq_compile(avx2 e8p_nearest_avx2.cpp matmul_e8p_avx2.cpp)
onnxq_compile(avx512 e8p_nearest_avx512.cpp matmul_e8p_avx512.cpp)
onnxq_compile(vnni matmul_e8p_vnni.cpp)
