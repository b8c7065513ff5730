onnxq_kernels(
  e8p_book.cpp
  e8p_nearest.cpp
  e8p_nearest_avx2.cpp
  e8p_nearest_avx512.cpp
  e8p_nearest_generic.cpp)
onnxq_python(e8p_python.cpp)
onnxq_compile(avx2 e8p_nearest_avx2.cpp)
onnxq_compile(avx512 e8p_nearest_avx512.cpp)
