"""How far an array is from the one it should be, reduced over samples as they come.

Nothing but sums is kept, so memory does not grow with the number of samples.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

__all__ = ["Deviation", "DeviationSums"]

_CHUNK = 1 << 20
"""Elements in float64 at a time."""
_ROW_ELEMENTS = 1 << 22
"""Scores in float64 at a time: rows of a vocabulary are wide."""
_TINY = 1e-300

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deviation:
    """The deviation of one value from its reference, over all samples.

    Figures that have no meaning for the dtype are None.

    Attributes:
        sqnr_db: 10·log10(Σ a² / Σ (b − a)²) in dB, for float values; inf when they are equal,
            -inf when an entry is finite in one of them only.
        max_error: max |b − a|, for float values.
        relative_error: max |b − a| / max |a|, for float values; inf when all a are zero and b
            is not.
        equal: fraction of entries that are equal (two NaN count as equal).
        kl: mean of KL(softmax a ‖ softmax b) over the rows along the last axis, in nats; where a
            is a probability distribution already it is taken as it is. None unless asked for.
        top1: fraction of rows whose largest entry is at the same place. None unless asked for.
        elements: number of entries compared.
    """

    sqnr_db: float | None
    max_error: float | None
    relative_error: float | None
    equal: float
    kl: float | None
    top1: float | None
    elements: int


class DeviationSums:
    """Sums over samples; see `Deviation` for what they give."""

    def __init__(self, *, scores: bool = False) -> None:
        """Begin with nothing; ``scores`` asks for KL and top-1 agreement along the last axis."""
        self._scores = scores
        self._is_float = False
        self._signal = self._noise = 0.0
        self._largest = self._error = 0.0
        self._equal = self._elements = 0
        self._kl = 0.0
        self._hits = self._rows = 0

    def add(self, reference: Array, other: Array) -> None:
        """Take one sample of both, of equal shapes."""
        self._elements += reference.size
        if reference.dtype.kind not in "fV" or other.dtype.kind not in "fV":
            self._equal += int(np.count_nonzero(reference == other))
            return
        self._is_float = True
        first, second = reference.reshape(-1), other.reshape(-1)
        for start in range(0, first.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            self._add_floats(first[part].astype(np.float64), second[part].astype(np.float64))
        if self._scores and reference.ndim > 0 and reference.shape[-1] > 1:
            self._add_scores(reference, other)

    def result(self) -> Deviation:
        """The figures over everything added so far."""
        floats = self._is_float
        with_rows = self._rows > 0
        return Deviation(
            sqnr_db=self._sqnr() if floats else None,
            max_error=self._error if floats else None,
            relative_error=self._relative() if floats else None,
            equal=self._equal / self._elements if self._elements else 1.0,
            kl=self._kl / self._rows if with_rows else None,
            top1=self._hits / self._rows if with_rows else None,
            elements=self._elements,
        )

    def _add_floats(self, first: Array, second: Array) -> None:
        same = (first == second) | (np.isnan(first) & np.isnan(second))
        self._equal += int(np.count_nonzero(same))
        finite = np.isfinite(first)
        if not (finite.all() and np.isfinite(second).all()):
            if not (same | (finite & np.isfinite(second))).all():
                self._error = math.inf
            # Entries that are infinite or NaN in both alike are no signal and no error.
            usable = finite & np.isfinite(second)
            first, second = first[usable], second[usable]
        difference = second - first
        self._signal += float(first @ first)
        self._noise += float(difference @ difference)
        self._largest = max(self._largest, float(np.max(np.abs(first), initial=0.0)))
        self._error = max(self._error, float(np.max(np.abs(difference), initial=0.0)))

    def _add_scores(self, reference: Array, other: Array) -> None:
        width = reference.shape[-1]
        first, second = reference.reshape(-1, width), other.reshape(-1, width)
        step = max(1, _ROW_ELEMENTS // width)
        for start in range(0, len(first), step):
            a = first[start : start + step].astype(np.float64)
            b = second[start : start + step].astype(np.float64)
            self._hits += int(np.count_nonzero(a.argmax(axis=1) == b.argmax(axis=1)))
            self._rows += len(a)
            self._kl += float(_divergence(a, b).sum())

    def _sqnr(self) -> float:
        if self._error == math.inf:
            return -math.inf
        if self._noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self._signal / self._noise) if self._signal else -math.inf

    def _relative(self) -> float:
        if self._error == 0.0:
            return 0.0
        return self._error / self._largest if self._largest else math.inf


def _divergence(first: Array, second: Array) -> Array:
    """KL divergence of each row, in nats, never negative."""
    if _are_probabilities(first):
        p = first
        log_p, log_q = np.log(np.maximum(p, _TINY)), np.log(np.maximum(second, _TINY))
    else:
        log_p, log_q = _log_softmax(first), _log_softmax(second)
        p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0.0, p * (log_p - log_q), 0.0)
    divergence: np.ndarray[Any, Any] = np.maximum(terms.sum(axis=1), 0.0)
    return divergence


def _are_probabilities(rows: Array) -> bool:
    return bool((rows >= 0.0).all() and np.allclose(rows.sum(axis=1), 1.0, rtol=0.0, atol=1e-3))


def _log_softmax(rows: Array) -> Array:
    shifted = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
