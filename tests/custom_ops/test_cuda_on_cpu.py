"""The CUDA kernels on the CPU: the same source, with CUDA's words in C++ (custom_ops/matmul/tests).

Indices, tails, barriers and the meaning of every stored bit are tested by this, on memory whose end
may not be passed; not speed, nor what nvcc and a GPU make of it (tests/gpu).
"""

import itertools
import platform

import numpy as np
import pytest

from onnxq.custom_ops.catalog import spec_of
from onnxq.custom_ops.hadamard import hadamard_reference
from onnxq.formats import parse_format
from onnxq.runtime import operators
from tests.custom_ops.matmul_cases import one_node_model, run
from tests.gpu import on_cpu
from tests.gpu.kernels import Kernels, Weight, rounded
from tests.gpu.matmul_checks import (
    FORMATS,
    TOKENS,
    bound,
    check_codes,
    check_products,
    draw,
    shape_of,
)

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


@pytest.mark.parametrize(("index", "fmt"), tuple(enumerate(FORMATS)))
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
    half, halves = x.astype(np.float16), factor.astype(np.float16)
    wanted = hadamard_reference(half.astype(np.float64), halves.astype(np.float64), order * power)
    found = kernels.hadamard(half, halves).astype(np.float64)
    off = 2.0**-11 * np.abs(wanted) + 2.0**-24 * order * power
    assert (np.abs(found - wanted) <= off).all()


@pytest.mark.parametrize("fmt", FORMATS)
def test_operators_give_the_kernels_what_the_file_holds(fmt, kernels, monkeypatch):
    shape = shape_of(fmt)
    fmt = parse_format(fmt)
    spec = spec_of(fmt, shape)
    if isinstance(spec, str):
        pytest.skip(spec)
    weight = draw(*shape)
    arrays = fmt.encode(weight)
    stored = spec.stored(fmt.pack(arrays))
    model = one_node_model(spec, fmt, stored, shape)
    monkeypatch.setattr(operators, "_library", lambda: kernels.path)
    bits = spec.attributes(fmt, shape)["activation_bits"]
    span = 128 if spec.name == "MatMulLut" else 0
    a = draw(3, shape[1])
    seen = a.astype(np.float64) if bits == 32 else rounded(a, span)
    decoded = fmt.decode(arrays).astype(np.float64)
    off = np.abs(run(model, a) - seen @ decoded.T)
    assert (off <= bound(seen, decoded, np.float32, 3)).all()


def test_wrong_arrays_are_refused_with_a_sentence(kernels, monkeypatch):
    fmt = parse_format("int4_g32_asym")
    spec, shape = spec_of(fmt, (5, 64)), (5, 64)
    stored = spec.stored(fmt.pack(fmt.encode(draw(*shape))))
    monkeypatch.setattr(operators, "_library", lambda: kernels.path)
    for name in ("codes", "scales", "zeros"):
        cut = {**stored, name: stored[name][:, :-1].repeat(2, axis=0)}
        with pytest.raises(Exception, match=f"MatMulInt: {name} has shape"):
            run(one_node_model(spec, fmt, cut, shape), draw(1, 64))


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
