"""Agreement of classifiers: with labels, and of a quantized model with its source."""

from __future__ import annotations

import numpy as np

from onnxq.errors import CalibrationError

__all__ = ["decision_agreement", "top1", "top1_accuracy", "top1_agreement"]


def top1(scores: np.ndarray) -> np.ndarray:
    """Index of the best class along the last axis: int64, the shape without that axis."""
    best: np.ndarray = np.argmax(scores, axis=-1)
    return best


def top1_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose best class is the label.

    Args:
        scores: [rows, classes], any monotone score (logits, probabilities).
        labels: right class of each row, [rows].

    Raises:
        CalibrationError: the shapes do not fit, or there are no rows.
    """
    return _share(top1(scores), np.asarray(labels))


def top1_agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Share of rows on which two models name the same best class.

    Args:
        first: scores of one model, [..., classes].
        second: scores of the other, of the same shape.

    Raises:
        CalibrationError: the shapes differ, or there are no rows.
    """
    return _share(top1(first), top1(second))


def decision_agreement(first: np.ndarray, second: np.ndarray, threshold: float = 0.5) -> float:
    """Share of probabilities that fall on the same side of a threshold.

    Args:
        first: probabilities of one model, any shape.
        second: probabilities of the other, of the same shape.
        threshold: a probability at or over it decides yes.

    Raises:
        CalibrationError: the shapes differ, or there is nothing to compare.
    """
    return _share(np.asarray(first) >= threshold, np.asarray(second) >= threshold)


def _share(first: np.ndarray, second: np.ndarray) -> float:
    if first.shape != second.shape or first.size == 0:
        raise CalibrationError(
            f"Decisions of shapes {list(first.shape)} and {list(second.shape)} cannot be "
            "compared: run both models on the same inputs, one or more."
        )
    return float(np.mean(first == second))
