"""Correlations against SciPy's where it is installed, and against hand-made cases."""

import numpy as np
import pytest

from onnxq.errors import CalibrationError
from onnxq.evaluate.similarity import cosine_rows, pearson, spearman


def test_against_scipy_with_ties():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    a = generator.integers(0, 6, 200).astype(np.float32)
    b = a + generator.normal(size=200).round(1)
    assert pearson(a, b) == pytest.approx(stats.pearsonr(a, b)[0], abs=1e-12)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0], abs=1e-12)


def test_extremes():
    a = np.array([1.0, 2.0, 4.0, 8.0])
    assert pearson(a, 3 * a + 1) == pytest.approx(1.0, abs=1e-15)
    assert spearman(a, np.exp(-a)) == pytest.approx(-1.0, abs=1e-15)


def test_a_constant_is_refused():
    with pytest.raises(CalibrationError, match="all equal"):
        pearson(np.ones(3), np.arange(3))


def test_different_lengths_are_refused():
    with pytest.raises(CalibrationError, match="not 3 and 4 values"):
        spearman(np.arange(3), np.arange(4))


def test_cosine_rows():
    a = np.array([[3, 4], [1, 0], [0, 0]], np.float32)
    b = np.array([[6, 8], [0, 2], [1, 1]], np.float32)
    assert cosine_rows(a, b) == pytest.approx([1.0, 0.0, 0.0])
