onnxq_kernels(hadamard_avx2.cpp hadamard_avx512.cpp hadamard_generic.cpp hadamard_neon.cpp)
onnxq_operator(hadamard_ort.cpp)
onnxq_python(hadamard_python.cpp)
onnxq_compile(avx2 hadamard_avx2.cpp)
onnxq_compile(avx512 hadamard_avx512.cpp)
# Written in vectors by hand. Where GCC 12 makes vectors of the rest, it fuses a product with
# alternating sums and differences (VEC_FMSUBADD) in spite of -ffp-contract=off.
set_property(SOURCE ${folder}/hadamard_avx2.cpp ${folder}/hadamard_avx512.cpp APPEND PROPERTY
  COMPILE_OPTIONS -fno-tree-vectorize -fno-tree-slp-vectorize)
