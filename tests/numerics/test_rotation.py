"""Every kind of rotation is orthogonal, deterministic, and does what its name says."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.numerics.rotation import KINDS, as_rotation, make_rotation, orthogonal

RNG = np.random.default_rng(7)


def _covariance(size: int) -> np.ndarray:
    """Of correlated channels, one of them an outlier."""
    x = RNG.standard_normal((4 * size, size)) @ RNG.standard_normal((size, size))
    x[:, 0] *= 30
    moment: np.ndarray = x.T @ x / len(x)
    return moment


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 6, 9, 12, 36, 64, 96])
def test_orthogonal_and_undone(kind: str, size: int) -> None:
    rotation = make_rotation(kind, size, seed=5, covariance=_covariance(size))
    matrix = rotation.matrix
    bound = 40 * size * 2.0**-52
    assert np.abs(matrix @ matrix.T - np.eye(size)).max() < bound
    x = RNG.standard_normal((3, 2, size))
    assert np.abs(rotation.apply(x) - x @ matrix).max() < bound * np.abs(x).max()
    assert np.abs(rotation.undo(rotation.apply(x)) - x).max() < bound * np.abs(x).max()
    assert np.abs(rotation.inverse.apply(rotation.apply(x)) - x).max() < bound * np.abs(x).max()


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_bits(kind: str) -> None:
    covariance = _covariance(24)
    first = orthogonal(kind, 24, seed=1, covariance=covariance)
    assert np.array_equal(first, orthogonal(kind, 24, seed=1, covariance=covariance))
    if kind in ("randomized_hadamard", "orthogonal"):
        assert not np.array_equal(first, orthogonal(kind, 24, seed=2))


@pytest.mark.parametrize("kind", ["hadamard", "randomized_hadamard"])
def test_hadamard_spreads_one_channel_over_all_alike(kind: str) -> None:
    entries = np.abs(make_rotation(kind, 576, seed=3).matrix)
    assert np.abs(entries - 576**-0.5).max() < 1e-15


def test_blocks_stay_apart() -> None:
    matrix = make_rotation("block_hadamard", 48, block=12).matrix
    assert np.array_equal(matrix != 0, np.kron(np.eye(4), np.ones((12, 12))) != 0)
    assert "4 blocks of Hadamard H12" in make_rotation("block_hadamard", 48, block=12).label
    # Without a size the largest power of two that divides: 16 of 48.
    assert np.count_nonzero(make_rotation("block_hadamard", 48).matrix[0]) == 16


def test_klt_makes_channels_uncorrelated_with_the_largest_first() -> None:
    covariance = _covariance(32)
    matrix = make_rotation("klt", 32, covariance=covariance).matrix
    turned = matrix.T @ covariance @ matrix
    variances = np.diagonal(turned)
    assert np.abs(turned - np.diag(variances)).max() < 1e-10 * variances.max()
    assert (np.diff(variances) <= 1e-9 * variances.max()).all()


def test_klt_hadamard_gives_all_channels_the_mean_variance() -> None:
    covariance = _covariance(32)
    matrix = make_rotation("klt_hadamard", 32, covariance=covariance).matrix
    variances = np.diagonal(matrix.T @ covariance @ matrix)
    mean = np.trace(covariance) / 32
    assert np.abs(variances - mean).max() < 1e-10 * mean
    plain = np.diagonal(orthogonal("hadamard", 32).T @ covariance @ orthogonal("hadamard", 32))
    assert np.ptp(plain) > 1e-3 * mean


def test_random_orthogonal_matrices_favour_no_direction() -> None:
    """Haar: E[Q] = 0, where Q of a plain QR has a diagonal that leans to one sign."""
    corners = [orthogonal("orthogonal", 3, seed)[0, 0] for seed in range(400)]
    # Var of an entry is 1/3: the mean of 400 is within 5 deviations of 0.
    assert abs(np.mean(corners)) < 5 * (1 / 3 / 400) ** 0.5


def test_refusals() -> None:
    with pytest.raises(FormatError, match="no rotation 'fourier': choose one of hadamard"):
        make_rotation("fourier", 8)
    with pytest.raises(FormatError, match="blocks of 5 do not divide 12 channels"):
        make_rotation("block_hadamard", 12, block=5)
    with pytest.raises(FormatError, match="klt rotation is made of a covariance"):
        make_rotation("klt", 8)
    with pytest.raises(FormatError, match=r"it is \[8, 8\] for 8 channels"):
        make_rotation("klt", 8, covariance=np.eye(7))
    with pytest.raises(FormatError, match="not orthogonal: Q Qᵀ differs from I by up to 3"):
        as_rotation(2 * np.eye(4))
    with pytest.raises(FormatError, match="a rotation is a square matrix"):
        as_rotation(np.ones((2, 3)))
