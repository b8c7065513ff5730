"""How far a tensor is from one that a uniform quantizer serves well: outliers, as three figures.

For the rows x of a matrix X (tokens by channels, or output channels by inputs):

kurtosis
    E[(x − m)⁴] / E[(x − m)²]² over all entries, m their mean: 3 for a Gaussian, 1.8 for a uniform
    distribution, 1 for two values of equal count. Heavy tails make it grow.
max-to-RMS
    max|x| / √E[x²], of the whole tensor (what one scale for a tensor sees) and as the mean over the
    rows of the same ratio of each row (what one scale for a token sees). At least 1; √n for a
    vector with one entry that is not zero; its inverse is the signal that a grid of given
    bits has left.
QSUR
    Quantization space utilization rate (OSTQuant, Hu et al., arXiv:2501.13987, section 3): the
    volume of the ellipsoid that the data fill, over the volume of the cube that the quantizer
    spans to hold it. For rows with the second moment M = E[x xᵀ] the ellipsoid is
    {x: xᵀ M⁻¹ x ≤ r²}, of volume π^{d/2} / Γ(d/2 + 1) · r^d · √det M; along axis j it reaches
    r·√M_jj, and one grid for all channels, symmetric about zero, spans the cube of edge
    2 r · max_j √M_jj. So

        QSUR = π^{d/2} / (Γ(d/2 + 1) · 2^d) · √det M / (max_j M_jj)^{d/2}

    and r, which stands for how much of the data is to be inside, cancels. The paper takes the
    moments about the mean of a Gaussian, says that the mean may be left out, and takes the reach of
    the longest axis alone, √λ₁·max|q₁|, for the edge; here the second moment is about zero, so that
    a channel that lies far off zero counts as what it is for a symmetric grid, and the edge is that
    of the exact bounding cube. For d channels of equal variance and no correlation it is that of
    the ball, π^{d/2} / (Γ(d/2 + 1) 2^d), which nothing exceeds (Hadamard's inequality).

    In high dimensions all of these volumes vanish: figures are given as

        (log₂ QSUR − log₂ QSUR of the ball) / d  =  ½ log₂( (det M)^{1/d} / max_j M_jj )  ≤  0,

    in bits: how many bits of each channel the shape of the data wastes, with one step for all.
    An orthogonal matrix that levels the diagonal of M leaves ½ log₂ of the geometric over the
    arithmetic mean of its eigenvalues; a scaling to equal eigenvalues besides leaves 0. With few
    rows for a channel √det M comes out too small (by 0.2 bits at two rows for each channel,
    independent Gaussian ones), alike before and after an invertible map on the same rows: compare,
    and read no level from few rows.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

__all__ = ["OutlierMeter", "Outliers", "log_ball_qsur", "log_qsur", "qsur_bits"]

Array = np.ndarray[Any, Any]

QSUR_COLUMNS = 2048
"""Channels up to which the second moment is kept: 32 MiB in float64."""

_RIDGE = 1e-9
"""Of the mean square, added to every M_jj: a norm leaves one direction without any variance, and
QSUR would be zero for that alone. Equal for a rotated tensor, since the trace is."""

_BLOCK = 1 << 16
"""Entries in float64 at a time: half a megabyte, which stays in the cache over the passes."""

_PRODUCT_ROWS = 1024
"""Rows in one product of the second moment."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outliers:
    """The figures of one tensor.

    Attributes:
        kurtosis: of all entries about their mean; None when they are all equal.
        max_to_rms: greatest magnitude over root mean square, of the whole tensor.
        row_max_to_rms: the same ratio for each row, as the mean over the rows that are not zero.
        qsur: log₂ of QSUR over that of a ball, per channel, in bits, at most 0; None when there are
            more than `QSUR_COLUMNS` channels, or fewer rows than channels, which span no ellipsoid.
        rows: how many rows were seen.
        columns: channels.
    """

    kurtosis: float | None
    max_to_rms: float
    row_max_to_rms: float
    qsur: float | None
    rows: int
    columns: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, four digits each."""
        found = dataclasses.asdict(self)
        return {
            key: float(f"{value:.4g}") if isinstance(value, float) else value
            for key, value in found.items()
        }


class OutlierMeter:
    """Gathers the figures of one tensor, some rows at a time, in float64.

    Args:
        columns: channels, the length of a row.
        wants_qsur: keep the second moment, where ``columns`` allows it.

    Attributes:
        peaks: float64 [columns], the greatest magnitude of each channel so far.
    """

    def __init__(self, columns: int, *, wants_qsur: bool = True) -> None:
        self.peaks = np.zeros(columns)
        self._columns = columns
        self._squares = np.zeros(columns)
        self._rows = 0
        self._ratios = 0.0
        self._rows_not_zero = 0
        self._origin: float | None = None
        self._powers = np.zeros(4)
        keeps = wants_qsur and columns <= QSUR_COLUMNS
        self._moment = np.zeros((columns, columns)) if keeps else None
        self._is_finite = True

    def add(self, rows: Array) -> None:
        """Add rows, [rows, columns] of any float type."""
        step = max(1, _BLOCK // max(self._columns, 1))
        for start in range(0, len(rows), step):
            self._add_block(rows[start : start + step].astype(np.float64))
        if self._moment is None or not self._is_finite:
            return
        for start in range(0, len(rows), _PRODUCT_ROWS):
            wide = rows[start : start + _PRODUCT_ROWS].astype(np.float64)
            self._moment += wide.T @ wide

    def _add_block(self, block: Array) -> None:
        magnitudes = np.abs(block)
        row_peaks = magnitudes.max(axis=1, initial=0.0)
        if not np.isfinite(row_peaks).all():
            self._is_finite = False
            return
        np.maximum(self.peaks, magnitudes.max(axis=0, initial=0.0), out=self.peaks)
        squares = np.square(magnitudes, out=magnitudes)
        self._squares += squares.sum(axis=0)
        roots = np.sqrt(squares.mean(axis=1))
        full = row_peaks > 0
        self._ratios += float(np.sum(row_peaks[full] / roots[full]))
        self._rows_not_zero += int(np.count_nonzero(full))
        self._rows += len(block)
        self._add_powers(block)

    def _add_powers(self, block: Array) -> None:
        """Sums of powers about a value near the mean: about zero they would cancel."""
        if self._origin is None:
            self._origin = float(block.mean())
        centred = block.ravel() - self._origin
        power = centred.copy()
        for number in range(4):  # no dot products: the BLAS would start threads for each
            self._powers[number] += power.sum()
            power *= centred

    @property
    def roots(self) -> Array:
        """float64 [columns]: the root mean square of each channel."""
        return np.asarray(np.sqrt(self._squares / max(self._rows, 1)))

    def result(self) -> Outliers | str:
        """The figures, or a clause that says why there are none."""
        if not self._is_finite:
            return "it holds NaN or infinity"
        if not self._rows or not self.peaks.size:
            return "it is empty"
        if not self.peaks.any():
            return "it is zero throughout"
        mean_square = float(self._squares.mean()) / self._rows
        return Outliers(
            kurtosis=self._kurtosis(),
            max_to_rms=float(self.peaks.max()) / math.sqrt(mean_square),
            row_max_to_rms=self._ratios / self._rows_not_zero,
            qsur=self._qsur(),
            rows=self._rows,
            columns=self._columns,
        )

    def _kurtosis(self) -> float | None:
        first, second, third, fourth = self._powers / (self._rows * self._columns)
        variance = second - first**2
        if variance <= 1e-12 * second or variance <= 0.0:
            return None
        central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        return float(central / variance**2)

    def _qsur(self) -> float | None:
        if self._moment is None or self._rows < self._columns:
            return None
        return qsur_bits(self._moment / self._rows)


def log_ball_qsur(dimension: int) -> float:
    """Natural logarithm of the QSUR of a ball: of its volume over that of the cube around it."""
    half = dimension / 2
    return half * math.log(math.pi) - math.lgamma(half + 1) - dimension * math.log(2)


def log_qsur(moment: Array) -> float:
    """Natural logarithm of QSUR.

    Args:
        moment: float64 [channels, channels], E[x xᵀ]; symmetric and not zero.
    """
    return log_ball_qsur(len(moment)) + len(moment) * math.log(2) * qsur_bits(moment)


def qsur_bits(moment: Array) -> float:
    """(log₂ QSUR − log₂ QSUR of a ball) / channels: bits of each channel wasted, as a number ≤ 0.

    Args:
        moment: float64 [channels, channels], E[x xᵀ]; symmetric and not zero.
    """
    size = len(moment)
    level = float(np.trace(moment)) / size
    ridged = moment / level + _RIDGE * np.eye(size)
    roots = np.sqrt(np.diag(ridged))
    # Of the correlations, so that channels of very different size cost no digits.
    correlations = ridged / np.outer(roots, roots)
    factor = np.linalg.cholesky(correlations)
    logarithm = 2 * float(np.log(np.diag(factor)).sum() + np.log(roots).sum())
    bits = 0.5 * (logarithm / size - 2 * math.log(float(roots.max()))) / math.log(2)
    return min(bits, 0.0)
