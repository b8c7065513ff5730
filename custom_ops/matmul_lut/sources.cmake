onnxq_kernels(lut.cpp lut_packed.cpp lut_generic.cpp lut_avx2.cpp lut_avx512.cpp lut_vnni.cpp
  lut_dot.cpp)
onnxq_operator(matmul_lut_ort.cpp)
onnxq_compile(avx2 lut_avx2.cpp)
onnxq_compile(avx512 lut_avx512.cpp)
onnxq_compile(vnni lut_vnni.cpp)
onnxq_compile(dot lut_dot.cpp)
