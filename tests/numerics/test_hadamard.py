"""H Hᵀ = n I in integers, entries exactly ±1 where claimed, and the fast product is the product."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.numerics.hadamard import core_matrix, factor_size, fast_apply, hadamard, sylvester
from onnxq.numerics.paley import is_paley_order, paley
from onnxq.numerics.williamson import williamson

WIDTHS = (
    192, 288, 320, 384, 512, 576, 640, 768, 896, 960, 1024, 1152, 1280, 1536, 1792, 2048, 2304,
    2560, 3072, 3584, 4096, 4608, 4864, 5120, 5632, 6144, 6400, 6912, 7168, 8192, 8960, 9216, 10240,
    10752, 11008, 12288, 13824, 14336, 15360, 16384,
)  # fmt: skip
"""Widths of streams, heads times head sizes and feed-forward layers of common models."""


def _is_hadamard(matrix: np.ndarray) -> bool:
    whole = matrix.astype(np.int64)
    assert np.array_equal(whole, matrix)
    size = len(whole)
    # Sums of n ones are exact in float64, whatever their order, and its products are fast.
    product = whole.astype(np.float64) @ whole.T.astype(np.float64)
    return bool((np.abs(whole) == 1).all() and np.array_equal(product, size * np.eye(size)))


@pytest.mark.parametrize("order", [n for n in range(4, 260, 4) if is_paley_order(n)])
def test_paley_matrices_are_exact(order: int) -> None:
    assert _is_hadamard(paley(order))


def test_prime_powers_give_orders_that_primes_do_not() -> None:
    for order, field in ((28, 27), (244, 243), (52, 25), (100, 49), (340, 169)):
        assert is_paley_order(order), (order, field)
        assert _is_hadamard(paley(order))
    assert not is_paley_order(92)
    assert not is_paley_order(40)  # 39 = 3 · 13; 19 is no remainder 1 of 4


@pytest.mark.parametrize("order", [92, 172])
def test_williamson_matrices_are_exact(order: int) -> None:
    assert _is_hadamard(williamson(order))


def test_products_of_two_constructions_are_exact() -> None:
    assert _is_hadamard(hadamard(12 * 92))
    needs_both = next(n for n in range(144, 20000, 16) if _takes_a_product(n))
    assert _is_hadamard(hadamard(needs_both))


def _takes_a_product(order: int) -> bool:
    factors = factor_size(order)
    core = factors.core
    return (
        factors.power == 1 and factors.is_hadamard and not is_paley_order(core) and core % 16 == 0
    )


@pytest.mark.parametrize("size", WIDTHS)
def test_every_width_in_use_has_an_exact_matrix(size: int) -> None:
    """H_m ⊗ S is exact when both factors are, which spares the product of 16384² entries."""
    factors = factor_size(size)
    assert factors.is_hadamard
    assert factors.size == size
    assert _is_hadamard(core_matrix(factors))
    assert _is_hadamard(sylvester(min(factors.power, 256)))
    if size <= 1024:
        assert _is_hadamard(hadamard(size))


@pytest.mark.parametrize("size", WIDTHS)
def test_unit_vectors_become_rows_of_ones(size: int) -> None:
    """A few rows of the largest: each entry ±1, and they are orthogonal, all in integers."""
    rows = np.sort(np.random.default_rng(size).choice(size, 8, replace=False))
    units = np.zeros((8, size))
    units[np.arange(8), rows] = 1
    found = fast_apply(units) * np.sqrt(size)
    whole = np.rint(found).astype(np.int64)
    assert np.abs(found - whole).max() < 1e-9
    assert (np.abs(whole) == 1).all()
    assert np.array_equal(whole @ whole.T, size * np.eye(8, dtype=np.int64))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 9, 12, 18, 20, 36, 92, 116, 144, 192, 576, 1536])
def test_fast_product_is_the_product(size: int) -> None:
    factors = factor_size(size)
    dense = np.kron(core_matrix(factors), sylvester(factors.power)) / np.sqrt(size)
    x = np.random.default_rng(size).standard_normal((2, 3, size))
    before = x.copy()
    bound = 8 * np.sqrt(size) * 2.0**-52 * np.abs(x).max()
    assert np.abs(dense @ dense.T - np.eye(size)).max() < 16 * np.sqrt(size) * 2.0**-52
    assert np.abs(fast_apply(x) - x @ dense).max() < bound
    assert np.abs(fast_apply(x, transposed=True) - x @ dense.T).max() < bound
    assert np.abs(fast_apply(fast_apply(x), transposed=True) - x).max() < bound
    assert fast_apply(x.astype(np.float32)).dtype == np.float32
    assert np.array_equal(x, before)


def test_blocks_are_rotated_alone() -> None:
    x = np.random.default_rng(0).standard_normal((5, 48))
    found = fast_apply(x, 12)
    for block in range(4):
        part = slice(12 * block, 12 * block + 12)
        assert np.array_equal(found[:, part], fast_apply(x[:, part]))


@pytest.mark.parametrize("size", [9, 18, 116, 4304])
def test_sizes_without_a_matrix_have_a_near_one(size: int) -> None:
    factors = factor_size(size)
    assert not factors.is_hadamard
    core = core_matrix(factors)
    assert np.abs(core @ core.T - factors.core * np.eye(factors.core)).max() < 1e-9
    assert np.abs(core).max() <= np.sqrt(2) + 1e-12


def test_refusals() -> None:
    with pytest.raises(FormatError, match="order 9 is known: there is none unless 4 divides it"):
        hadamard(9)
    with pytest.raises(FormatError, match="order 116 is known: no construction here gives it"):
        hadamard(116)
    with pytest.raises(FormatError, match="size of at least 1"):
        factor_size(0)
    with pytest.raises(FormatError, match="10 channels cannot be rotated in blocks of 4"):
        fast_apply(np.ones((2, 10)), 4)
    with pytest.raises(FormatError, match="power of two, not 12"):
        sylvester(12)


def test_factors_read_as_a_product() -> None:
    assert [str(factor_size(n)) for n in (1, 512, 12, 576, 18)] == [
        "S1", "S512", "H12", "H36 ⊗ S16", "Hartley9 ⊗ S2",
    ]  # fmt: skip
