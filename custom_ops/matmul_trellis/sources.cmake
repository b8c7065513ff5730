onnxq_kernels(trellis_packed.cpp matmul_trellis_generic.cpp matmul_trellis_avx2.cpp
  matmul_trellis_avx512.cpp matmul_trellis_vnni.cpp)
onnxq_operator(matmul_trellis_ort.cpp)
onnxq_compile(avx2 matmul_trellis_avx2.cpp)
onnxq_compile(avx512 matmul_trellis_avx512.cpp)
onnxq_compile(vnni matmul_trellis_vnni.cpp)
