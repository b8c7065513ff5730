"""The CUDA kernels on the CPU: the same source, with CUDA's words in C++ (custom_ops/matmul/tests).

Indices, tails, barriers and the meaning of every stored bit are tested by this, on memory whose end
may not be passed; not speed, nor what nvcc and a GPU make of it (tests/gpu).
"""

import itertools
import platform

import numpy as np
import pytest

from onnxq.custom_ops.hadamard import hadamard_reference
from tests.gpu import on_cpu
from tests.gpu.kernels import Kernels, Weight
from tests.gpu.matmul_checks import FORMATS, TOKENS, check_codes, check_products, draw, shape_of

pytestmark = pytest.mark.skipif(
    on_cpu.compiler() is None or platform.system() != "Linux",
    reason="the CUDA kernels run on the CPU where Linux has a C++ compiler",
)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    library = on_cpu.build(tmp_path_factory.mktemp("cuda_on_cpu"))
    return Kernels(library, on_cpu.Memory(library))


@pytest.mark.parametrize("fmt", FORMATS)
def test_codes_are_decoded_bit_by_bit(fmt, kernels):
    columns = shape_of(fmt)[1]
    with Weight(kernels, fmt, draw(19, columns)) as weight:
        check_codes(weight)


@pytest.mark.parametrize(("index", "fmt"), enumerate(FORMATS))
def test_products_are_those_of_float64(index, fmt, kernels):
    # Every way a product is computed, and a third of them for each format.
    ways = itertools.product(TOKENS, (np.float32, np.float16), (8, 32))
    with Weight(kernels, fmt, draw(*shape_of(fmt))) as weight:
        for way, (tokens, dtype, activation_bits) in enumerate(ways):
            if (way + index) % 3 == 0:
                check_products(weight, tokens, dtype, activation_bits)


def test_one_row_and_one_token(kernels):
    for fmt, columns in (("int3", 1), ("lut4", 5), ("vq_d4n16", 4), ("e8p2", 8)):
        with Weight(kernels, fmt, draw(1, columns)) as weight:
            check_codes(weight)
            check_products(weight, 9, np.float32, 32)


@pytest.mark.parametrize(("order", "power"), ((1, 1), (1, 512), (3, 8), (12, 64), (20, 16)))
def test_hadamard_rows_are_those_of_the_reference(kernels, order, power):
    x = draw(3, order * power)
    factor = np.linalg.qr(np.random.default_rng(1).standard_normal((order, order)))[0]
    factor = factor.astype(np.float32)
    wanted = hadamard_reference(x.astype(np.float64), factor.astype(np.float64), order * power)
    found = kernels.hadamard(x, factor)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2.0**-24 * order * power)


def test_what_a_kernel_cannot_do_is_said(kernels):
    with Weight(kernels, "int4", draw(3, 16)) as weight:
        with pytest.raises(ValueError, match="activation_bits must be 8 or 32"):
            weight.multiply(draw(1, 16), activation_bits=16)
        weight.numbers.bits = 9
        with pytest.raises(ValueError, match="1 to 8 bits"):
            weight.multiply(draw(1, 16))
    with Weight(kernels, "trellis2_1mad", draw(16, 16)) as weight:
        weight.shape = (16, 24)
        with pytest.raises(ValueError, match="multiple of 16"):
            weight.multiply(draw(1, 24))
