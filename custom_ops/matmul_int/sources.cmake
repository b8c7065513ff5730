onnxq_kernels(stored.cpp matmul_int_generic.cpp matmul_int_avx2.cpp matmul_int_avx512.cpp
  matmul_int_vnni.cpp matmul_int_amx.cpp matmul_int_dot.cpp matmul_int_i8mm.cpp)
onnxq_operator(matmul_int_ort.cpp)
onnxq_compile(avx2 matmul_int_avx2.cpp)
onnxq_compile(avx512 matmul_int_avx512.cpp)
onnxq_compile(vnni matmul_int_vnni.cpp)
onnxq_compile(amx matmul_int_amx.cpp)
onnxq_compile(dot matmul_int_dot.cpp)
onnxq_compile(i8mm matmul_int_i8mm.cpp)
