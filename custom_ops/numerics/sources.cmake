# Tables of few values.
onnxq_kernels(tables.cpp tables_fit.cpp)
onnxq_python(tables_bindings.cpp)
# Codes and entries of tables, each the best for the other.
onnxq_kernels(entry_descent.cpp entry_descent_avx2.cpp entry_descent_avx512.cpp
  entry_descent_generic.cpp)
onnxq_compile(avx2 entry_descent_avx2.cpp)
onnxq_compile(avx512 entry_descent_avx512.cpp)
# Search in codebooks.
onnxq_kernels(codebook_search.cpp codebook_search_avx2.cpp codebook_search_avx512.cpp
  codebook_search_generic.cpp)
onnxq_python(codebook_bindings.cpp)
onnxq_compile(avx2 codebook_search_avx2.cpp)
onnxq_compile(avx512 codebook_search_avx512.cpp)
# Search in trellises.
onnxq_kernels(viterbi.cpp viterbi_avx2.cpp viterbi_avx512.cpp viterbi_generic.cpp)
onnxq_python(viterbi_bindings.cpp)
onnxq_compile(avx2 viterbi_avx2.cpp)
onnxq_compile(avx512 viterbi_avx512.cpp)
