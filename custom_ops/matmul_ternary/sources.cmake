onnxq_kernels(trits.cpp matmul_ternary_vnni.cpp)
onnxq_operator(matmul_ternary_ort.cpp)
onnxq_compile(vnni matmul_ternary_vnni.cpp)
