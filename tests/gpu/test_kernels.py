"""The CUDA kernels on a GPU: what tests/custom_ops/test_cuda_on_cpu.py says of their source."""

import ctypes

import numpy as np
import pytest

from onnxq import ops_library
from onnxq.custom_ops.hadamard import hadamard_reference
from tests.gpu.driver import Gpu, NoGpu
from tests.gpu.kernels import Kernels, Weight
from tests.gpu.matmul_checks import FORMATS, TOKENS, check_codes, check_products, draw, shape_of

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def kernels():
    try:
        gpu = Gpu()
    except NoGpu as reason:
        pytest.skip(str(reason))
    if not hasattr(ctypes.CDLL(ops_library()), "onnxq_matmul_int_cuda"):
        pytest.skip("onnxq was built without nvcc, and has no CUDA kernels.")
    return Kernels(ops_library(), gpu)


@pytest.fixture(params=FORMATS)
def weight(request, kernels):
    with Weight(kernels, request.param, draw(*shape_of(request.param))) as weight:
        yield weight


def test_codes_are_decoded_bit_by_bit(weight):
    check_codes(weight)


@pytest.mark.parametrize("dtype", (np.float32, np.float16))
@pytest.mark.parametrize("activation_bits", (8, 32))
@pytest.mark.parametrize("tokens", TOKENS)
def test_products_are_those_of_float64(weight, tokens, dtype, activation_bits):
    check_products(weight, tokens, dtype, activation_bits)


@pytest.mark.parametrize(("rows", "columns"), ((4096, 4096), (11008, 4096), (576, 1536)))
@pytest.mark.parametrize("fmt", ("int4_g128", "lut4", "vq_d4n256", "e8p2", "ternary"))
def test_products_of_real_shapes(kernels, fmt, rows, columns):
    with Weight(kernels, fmt, draw(rows, columns)) as weight:
        for tokens in (1, 128):
            check_products(weight, tokens, np.float16, 32)


@pytest.mark.parametrize(("order", "power"), ((1, 1), (1, 512), (12, 64), (1, 16384), (28, 512)))
def test_hadamard_rows_are_those_of_the_reference(kernels, order, power):
    x = draw(7, order * power)
    factor = np.linalg.qr(np.random.default_rng(1).standard_normal((order, order)))[0]
    factor = factor.astype(np.float32)
    wanted = hadamard_reference(x.astype(np.float64), factor.astype(np.float64), order * power)
    found = kernels.hadamard(x, factor)
    off = np.linalg.norm(found - wanted, axis=1)
    stages = np.log2(power) + 3 + order * np.sqrt(order)
    assert (off <= 2.0**-24 * stages * np.linalg.norm(x, axis=1)).all()
    half, halves = x.astype(np.float16), factor.astype(np.float16)
    wanted = hadamard_reference(half.astype(np.float64), halves.astype(np.float64), order * power)
    off = np.linalg.norm(kernels.hadamard(half, halves) - wanted, axis=1)
    units = 2.0**-11 + 2.0**-24 * stages
    assert (off <= units * np.linalg.norm(half.astype(np.float64), axis=1)).all()
