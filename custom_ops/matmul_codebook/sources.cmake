onnxq_kernels(stored.cpp matmul_codebook_generic.cpp matmul_codebook_avx2.cpp
  matmul_codebook_avx512.cpp matmul_codebook_vnni.cpp matmul_codebook_dot.cpp)
onnxq_operator(matmul_codebook_ort.cpp)
onnxq_compile(avx2 matmul_codebook_avx2.cpp)
onnxq_compile(avx512 matmul_codebook_avx512.cpp)
onnxq_compile(vnni matmul_codebook_vnni.cpp)
onnxq_compile(dot matmul_codebook_dot.cpp)
