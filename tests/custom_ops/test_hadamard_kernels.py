"""The kernels of Hadamard by instruction set, against float64, over odd shapes and every split."""

import numpy as np
import pytest

from onnxq.custom_ops.hadamard import hadamard_reference
from onnxq.numerics import _native
from onnxq.numerics.hadamard import core_matrix, factor_size, fast_apply

SETS = _native.hadamard_instruction_sets()
UNIT = 2.0**-24
POWERS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384]
PRODUCTS = [(2, 1), (3, 8), (5, 2), (9, 64), (12, 1), (12, 128), (13, 4), (20, 16), (28, 32)]


def factor_of(order):
    """An orthonormal matrix [m, m] that is not symmetric."""
    matrix = np.linalg.qr(np.random.default_rng(order).standard_normal((order, order)))[0]
    return matrix.astype(np.float32)


def transform(x, factor, name, begin=0, end=None, threads=1):
    y = np.full_like(x, np.nan)
    _native.hadamard_rows(x, factor, y, begin, len(x) if end is None else end, name, threads)
    return y


def bound(order, power):
    """Error of a row over its length: a rounding in each stage, and the sums of the factor.

    Each stage of the transform is √2 times an orthogonal map of which every number is rounded once;
    the factor is a sum of m products, off by at most m u Σ|x F|, and ‖ |F| ‖ ≤ √m.
    """
    stages = np.log2(power) + 3
    return UNIT * (stages + (order * np.sqrt(order) if order > 1 else 0))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("order", "power"), [(1, power) for power in POWERS] + PRODUCTS)
def test_rows_are_those_of_float64(name, order, power):
    x = np.random.default_rng(power).standard_normal((5, order * power)).astype(np.float32)
    x[2] *= 1e-30
    x[3, 0] = 1e6  # an outlier is spread over all
    factor = factor_of(order)
    wide = x.astype(np.float64)
    wanted = fast_apply(wide) if order == 1 else hadamard_reference(x, factor, order * power)
    error = np.linalg.norm(transform(x, factor, name) - wanted, axis=1)
    assert (error <= bound(order, power) * np.linalg.norm(wide, axis=1)).all()


@pytest.mark.parametrize("name", SETS)
def test_the_matrix_is_orthogonal_and_exact_where_its_numbers_are(name):
    for power in (1, 4, 16, 64, 256, 1024):
        matrix = transform(np.eye(power, dtype=np.float32), np.ones((1, 1), np.float32), name)
        root = np.float32(np.sqrt(power))
        assert set(np.unique(matrix * root)) <= {-1.0, 1.0}
        assert np.array_equal(
            matrix.astype(np.float64) @ matrix.T.astype(np.float64), np.eye(power)
        )
        assert np.array_equal(matrix, matrix.T)
    for size in (12, 20, 576, 1536, 18):
        factors = factor_size(size)
        core = (core_matrix(factors) / np.sqrt(factors.core)).astype(np.float32)
        matrix = transform(np.eye(size, dtype=np.float32), core, name).astype(np.float64)
        off = np.abs(matrix @ matrix.T - np.eye(size)).max()
        assert off <= 2 * bound(factors.core, factors.power)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("order", "power"), [(1, 64), (1, 4096), (12, 8), (9, 64)])
def test_every_portion_and_every_number_of_threads_gives_the_same_bits(name, order, power):
    rows = 7
    x = np.random.default_rng(3).standard_normal((rows, order * power)).astype(np.float32)
    factor = factor_of(order)
    whole = transform(x, factor, name)
    for begin in range(rows + 1):
        for end in range(begin, rows + 1):
            part = transform(x, factor, name, begin, end)
            assert np.array_equal(part[begin:end], whole[begin:end])
            assert np.isnan(part[:begin]).all()
            assert np.isnan(part[end:]).all()
    for threads in (2, 3, 16):
        assert np.array_equal(transform(x, factor, name, threads=threads), whole)
    in_place = x.copy()
    _native.hadamard_rows(in_place, factor, in_place, 0, rows, name, 1)
    assert np.array_equal(in_place, whole)


def test_instruction_sets_agree_bit_for_bit_without_a_factor():
    assert SETS[-1] == "generic"
    for power in POWERS:
        x = np.random.default_rng(power).standard_normal((2, power)).astype(np.float32)
        results = [transform(x, np.ones((1, 1), np.float32), name) for name in SETS]
        for result in results[1:]:
            assert np.array_equal(result, results[0])


@pytest.mark.parametrize("name", SETS)
def test_float16_is_widened_exactly_and_rounded_to_nearest_even(name):
    every = np.arange(65536, dtype=np.uint16)
    singles = np.empty(65536, np.float32)
    _native.widen_halves(every, singles, name)
    assert np.array_equal(singles, every.view(np.float16).astype(np.float32), equal_nan=True)
    # Ties between neighbours, a bit to either side, and all magnitudes.
    finite = every.view(np.float16)[np.isfinite(every.view(np.float16))].astype(np.float64)
    ties = ((np.sort(finite)[:-1] + np.sort(finite)[1:]) / 2).astype(np.float32)
    rng = np.random.default_rng(0)
    spread = np.exp2(rng.uniform(-30, 18, 5001)) * rng.standard_normal(5001)
    above, below = (np.nextafter(ties, np.float32(way)) for way in (np.inf, -np.inf))
    edges = np.array([np.inf, -np.inf, np.nan, 65519.99, 65520], np.float32)
    given = np.concatenate([ties, above, below, spread.astype(np.float32), edges])
    halves = np.empty(len(given), np.uint16)
    _native.narrow_to_halves(given, halves, name)
    with np.errstate(over="ignore"):
        assert np.array_equal(halves.view(np.float16), given.astype(np.float16), equal_nan=True)


def test_wrong_shapes_are_refused():
    x, one = np.zeros((2, 12), np.float32), np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="not a factor times a power of two"):
        transform(x, one, "")
    with pytest.raises(ValueError, match="shape of the factor"):
        transform(x, np.ones((5, 5), np.float32), "")
    with pytest.raises(ValueError, match="no such rows"):
        transform(np.zeros((2, 8), np.float32), one, "", 1, 3)
    with pytest.raises(ValueError, match="no such instruction set"):
        transform(np.zeros((2, 8), np.float32), one, "sse9")
