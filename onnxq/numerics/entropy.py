"""The clipping range that loses least information, in the sense of Kullback and Leibler.

Migacz, "8-bit inference with TensorRT", GTC 2017 (S7310): cut a histogram at a threshold, push what
lies outside into the outermost bins (P), merge the inside into as many levels as the quantizer has
and spread each level evenly over the bins that P fills (Q), and keep the threshold with the least
KL(P || Q). Differences from ONNX Runtime's and TensorRT's programs, on purpose:

- The levels are those of the quantizer: 255 over ``[-T, T)`` when symmetric, 256 over the window
  that the data really reach when not. ONNX Runtime spreads 128 over both signs.
- Levels are cut evenly, level ``j`` of ``n`` bins starts at bin ``floor(j n / levels)``. ONNX
  Runtime puts the remainder of ``n / levels`` into the last level, then compares it with nothing,
  so its divergence jumps with every multiple of the number of levels.
- The histogram it works on has no exact zeros: every range represents them without error, and a
  spike of them (after ReLU) would outweigh everything else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxq.numerics import _native

__all__ = ["NO_MASS", "entropy_sweep", "window_divergence"]

Counts = npt.NDArray[np.int64]

NO_MASS = 1e-4
"""The mass given to a level that holds outliers only, so that its divergence is finite."""


def entropy_sweep(
    bins: Counts, first: int, last: int, levels: int, *, threads: int = 1
) -> npt.NDArray[np.float64]:
    """The divergence of every window around the middle of a histogram.

    Args:
        bins: ``[2 * half]`` counts; bin ``half`` is the first one above 0.
        first: windows start at this bin or after it.
        last: windows end before this bin; ``first <= half <= last``.
        levels: of the quantizer.
        threads: of the kernel; the result does not depend on it.

    Returns:
        ``[half]``: element ``r`` is the divergence, in nats, of the window
        ``[max(first, half - r - 1), min(last, half + r + 1))``; infinite when the window has fewer
        bins than levels, or holds nothing. `window_divergence` is its meaning.
    """
    divergence = np.empty(len(bins) // 2)
    _native.entropy_sweep(np.ascontiguousarray(bins), first, last, levels, divergence, threads)
    return divergence


def window_divergence(bins: Counts, begin: int, end: int, levels: int) -> float:
    """KL(P || Q) in nats of the window ``[begin, end)``: the definition, bin by bin."""
    inside = bins[begin:end].astype(np.float64)
    size = end - begin
    if size < levels or inside.sum() == 0:
        return float("inf")
    p = inside.copy()
    p[0] += bins[:begin].sum()
    p[-1] += bins[end:].sum()
    q = np.zeros(size)
    for level in range(levels):
        part = slice(size * level // levels, size * (level + 1) // levels)
        filled = np.count_nonzero(p[part])
        if filled:
            q[part] = np.where(p[part] > 0, (inside[part].sum() or NO_MASS) / filled, 0.0)
    seen = p > 0
    p, q = p[seen] / p.sum(), q[seen] / inside.sum()
    return float(np.sum(p * np.log(p / q)))
