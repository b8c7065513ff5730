"""Factors that balance activations and weights, in closed form.

Let x_j be channel j of an activation and w_j the column of all weights that read it. After a
migration with factors s the quantizers see x_j / s_j and s_j w_j. All rules give s up to a common
factor, which neither a scale for each token or tensor nor one for each row or group of a weight
sees; it is chosen so that the geometric mean of s is 1.

- **SmoothQuant** (Xiao et al., arXiv:2211.10438):
  ``s_j = max|x_j|^α / max|w_j|^(1−α)``. α = 1 makes all channels of the activation alike, α = 0 all
  columns of the weight, α = ½ gives both the same profile √(max|x_j| max|w_j|).
- **Gain** (after PTQ4ARVG, Liu et al., arXiv:2601.21238, which derives its factors by
  differentiating the gain of scaling in a Taylor expansion of the loss; this is our derivation).
  With rounding errors ε of x / s and δ of s w, independent of them and of one another, to first
  order in each

      L(s) = E|Σ_j (x_j/s_j + ε_j)(s_j w_j + δ_j) − x_j w_j|²
           ≈ Σ_j  σ_x² s_j² ‖w_j‖²  +  σ_w² E[x_j²] / s_j²

  where the steps make σ_x and σ_w the same for all channels. Each term has one s_j, so dL/ds_j = 0
  gives ``s_j = √(σ_w/σ_x) · √(√E[x_j²] / ‖w_j‖)``, the least L, since both terms are convex in
  log s_j. It projects the gain on each channel: energies where SmoothQuant has extremes.
- **Percentile** (DGQ's percentile clipping, Zhang et al., arXiv:2310.04836): only the channels
  whose peak is beyond the p-th percentile t of the peaks are scaled, down to it:
  ``s_j = max(1, max|x_j| / t)``. The other weights keep their columns as they are.
- **AWQ** (Lin et al., arXiv:2306.00978): ``s_j = E|x_j|^β``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnxq.graph.sites import Site
from onnxq.graph.weights import read_weight

__all__ = [
    "awq_factors",
    "column_norms",
    "column_peaks",
    "gain_factors",
    "normalized",
    "percentile_factors",
    "smoothquant_factors",
]

Vector = npt.NDArray[np.float64]

_SPREAD = 4096.0
"""Factors stay within this of their geometric mean: float16 weights hold no more."""


def smoothquant_factors(peaks: Vector, weights: Vector, alpha: float) -> Vector:
    """``max|x_j|^α / max|w_j|^(1−α)``, float64 [channels], geometric mean 1.

    Args:
        peaks: max|x_j|, [channels].
        weights: max|w_j| over all weights that read the channel, [channels].
        alpha: 0 to 1.
    """
    return _ratio(peaks, weights, alpha, 1.0 - alpha)


def gain_factors(squares: Vector, norms: Vector) -> Vector:
    """``√(√E[x_j²] / ‖w_j‖)``, float64 [channels], geometric mean 1.

    Args:
        squares: E[x_j²], [channels].
        norms: ‖w_j‖ over all weights that read the channel, [channels].
    """
    return _ratio(np.sqrt(squares), norms, 0.5, 0.5)


def percentile_factors(peaks: Vector, percentile: float) -> Vector:
    """``max(1, max|x_j| / t)``, float64 [channels]; not normalized.

    Args:
        peaks: max|x_j|, [channels].
        percentile: t is the greatest peak that is within this percentile, 0 to 100.
    """
    threshold = float(np.percentile(peaks, percentile, method="lower"))
    if threshold <= 0.0:
        return np.ones_like(peaks)
    return np.clip(peaks / threshold, 1.0, _SPREAD)


def awq_factors(magnitudes: Vector, beta: float) -> Vector:
    """``E|x_j|^β``, float64 [channels], geometric mean 1."""
    return _ratio(magnitudes, np.ones_like(magnitudes), beta, 0.0)


def normalized(factors: Vector) -> Vector:
    """Geometric mean 1, each within 4096 of it; factors that are 0, NaN or infinite become 1."""
    usable = np.isfinite(factors) & (factors > 0)
    if not usable.any():
        return np.ones_like(factors)
    logs = np.log(np.where(usable, factors, 1.0))
    logs = np.where(usable, logs - logs[usable].mean(), 0.0)
    return np.asarray(np.exp(np.clip(logs, -np.log(_SPREAD), np.log(_SPREAD))))


def _ratio(above: Vector, below: Vector, power: float, other: float) -> Vector:
    """``above^power / below^other``; channels that are never anything stay as they are."""
    usable = (above > 0) & (below > 0)
    logs = power * np.log(np.where(usable, above, 1.0))
    logs = logs - other * np.log(np.where(usable, below, 1.0))
    return normalized(np.where(usable, np.exp(np.clip(logs, -600, 600)), 0.0))


def column_peaks(site: Site) -> Vector:
    """max|w| of each input channel of a site, float64 [input channels]."""
    return _by_column(site, lambda columns: np.abs(columns).max(axis=1))


def column_norms(site: Site) -> Vector:
    """‖w‖ of each input channel of a site, float64 [input channels]."""
    return _by_column(site, lambda columns: np.sqrt(np.einsum("ij,ij->i", columns, columns)))


def _by_column(site: Site, measure: Callable[[npt.NDArray[np.float32]], Vector]) -> Vector:
    """A measure of [input channels, everything else], taken of the stored weight."""
    if site.weight is None:
        raise ValueError(f"site {site.name!r} has no weight")
    array = read_weight(site.weight).astype(np.float32, copy=False)
    axis, channels = site.in_axis, array.shape[site.in_axis]
    if site.kind == "Conv" and site.groups > 1:  # depthwise: the filters of each channel
        axis, channels = site.out_axis, site.groups
    columns = np.moveaxis(array, axis, 0).reshape(channels, -1)
    return np.asarray(measure(columns), dtype=np.float64)
