onnxq_kernels(trits.cpp)
onnxq_operator(matmul_ternary_ort.cpp)
