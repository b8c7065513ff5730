"""Rounding that keeps sums: sums of errors below half a step, every code next to its weight."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxq.solvers.preserve_sums import preserve_sums


@given(
    rows=st.integers(1, 6),
    kernels=st.integers(1, 8),
    kernel=st.sampled_from([1, 3, 9]),
    seed=st.integers(0, 999),
)
def test_sums_of_errors_are_below_half_a_step(rows, kernels, kernel, seed):
    exact = np.random.default_rng(seed).uniform(-120, 120, (rows, kernels * kernel))
    codes = preserve_sums(exact, np.rint(exact), kernel=kernel, limit=127)
    error = codes - exact
    assert codes.dtype == np.int8
    assert np.all(np.abs(error) <= 1)
    assert np.all(np.abs(error.sum(axis=1)) <= 0.5 + 1e-9)


def test_the_limit_is_kept():
    exact = np.full((1, 4), 126.6)
    codes = preserve_sums(exact, np.rint(exact), kernel=1, limit=127)
    assert codes.sum() in (506, 507) and codes.max() <= 127


def test_a_constant_input_sees_the_exact_sum():
    """The point of it: a kernel that subtracts neighbours gives zero on a constant image."""
    generator = np.random.default_rng(0)
    exact = generator.uniform(-60, 60, (200, 9))
    exact -= exact.mean(axis=1, keepdims=True)
    nearest = np.abs(np.rint(exact).sum(axis=1))
    kept = np.abs(preserve_sums(exact, np.rint(exact), kernel=9, limit=127).sum(axis=1))
    assert nearest.max() >= 1 and kept.max() == 0
