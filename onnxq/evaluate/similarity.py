"""Correlation of a model's similarities with people's, and agreement of two sets of vectors."""

from __future__ import annotations

import numpy as np

from onnxq.errors import CalibrationError

__all__ = ["cosine_rows", "pearson", "spearman"]


def cosine_rows(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows.

    Args:
        first: vectors, [rows, size].
        second: vectors of the same shape.

    Returns:
        float64 [rows]; 0 where a vector is zero.
    """
    a, b = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots: np.ndarray = np.einsum("ij,ij->i", a, b)
    cosines: np.ndarray = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return cosines


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's linear correlation of two sequences of the same length, in [-1, 1].

    Raises:
        CalibrationError: fewer than two pairs, different lengths, or a sequence that is constant.
    """
    a, b = np.asarray(first, np.float64).ravel(), np.asarray(second, np.float64).ravel()
    if a.shape != b.shape or a.size < 2:
        raise CalibrationError(
            f"A correlation needs two sequences of one length, two pairs or more, not {a.size} "
            f"and {b.size} values."
        )
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not scale > 0:
        raise CalibrationError(
            "A correlation is not defined for a sequence whose values are all equal, or not "
            "finite: look at the model's outputs."
        )
    return float(np.clip(a @ b / scale, -1.0, 1.0))


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, ties sharing their mean rank.

    Raises:
        CalibrationError: as `pearson`.
    """
    return pearson(_ranks(np.asarray(first).ravel()), _ranks(np.asarray(second).ravel()))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values get the mean of the ranks they take up."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: np.ndarray = last - (counts - 1) / 2
    return means[group]
