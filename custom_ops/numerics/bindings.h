// What the files that bind kernels to Python share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

namespace nb = nanobind;

template <class T, int Dimensions>
using Strided = nb::ndarray<T, nb::ndim<Dimensions>, nb::device::cpu>;
template <class T, int Dimensions>
using Array = nb::ndarray<T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;

inline void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

void bind_codebook(nb::module_& m);
void bind_hadamard(nb::module_& m);
void bind_tables(nb::module_& m);
void bind_viterbi(nb::module_& m);
void bind_e8p(nb::module_& m);
