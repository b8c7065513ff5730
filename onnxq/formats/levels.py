"""Tables that are laws, not learned: 2**bits levels with largest magnitude 1, ascending."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

__all__ = ["LEVELS", "levels"]

Levels = npt.NDArray[np.float32]

_EXPONENTS = tuple(float(value) for value in np.linspace(1.0, 2.0, 9))
_CURVES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def levels(law: str, bits: int) -> list[Levels]:
    """The tables of a law, more than one where it has a parameter to be chosen for each weight.

    Args:
        law: a word of `LEVELS`.
        bits: 2 to 4.
    """
    return [table.astype(np.float32) for table in LEVELS[law](bits)]


def _normal_float(bits: int) -> list[npt.NDArray[np.float64]]:
    """Quantiles of N(0, 1), with an exact 0: NF4 (Dettmers et al., QLoRA, arXiv:2305.14314)."""
    steps = 2**bits
    offset = 1 - (1 / (2 * steps) + 1 / (2 * (steps - 1))) / 2
    quantile = np.vectorize(NormalDist().inv_cdf)
    above = quantile(np.linspace(offset, 0.5, steps // 2 + 1)[:-1])
    below = -quantile(np.linspace(offset, 0.5, steps // 2)[:-1])
    table = np.sort(np.concatenate([below, [0.0], above]))
    return [table / table[-1]]


def _float(bits: int) -> list[npt.NDArray[np.float64]]:
    """E2M1 of the OCP Microscaling Formats specification; with 3 bits E2M0, with 2 bits ±1, ±0."""
    known: dict[int, list[float]] = {4: [0, 0.5, 1, 1.5, 2, 3, 4, 6], 3: [0, 1, 2, 4], 2: [0, 1]}
    magnitudes = known[bits]
    above = np.array(magnitudes, np.float64) / magnitudes[-1]
    return [np.concatenate([-above[::-1], above])]


def _powers_of_root_two(bits: int) -> list[npt.NDArray[np.float64]]:
    """±√2⁻ⁱ and 0, one more of them below: the POST levels of ASQ."""
    half = 2 ** (bits - 1)
    below = -(2.0 ** (-0.5 * np.arange(half)))
    above = 2.0 ** (-0.5 * np.arange(half - 1))
    return [np.concatenate([below, [0.0], above[::-1]])]


def _power_exponent(bits: int) -> list[npt.NDArray[np.float64]]:
    """sign(i) |i|ᵖ, p from 1 to 2: NUPES (Yvinec et al., arXiv:2308.05600), p chosen by search."""
    steps = _steps(bits)
    return [np.sign(steps) * np.abs(steps) ** power for power in _EXPONENTS]


def _twin_log(bits: int) -> list[npt.NDArray[np.float64]]:
    """sign(i) ((1 + c)^|i| − 1) / c: on both sides of 0 levels evenly spaced in log(1 + c |x|).

    After the twin-log quantization of LRQ-DiT, which moves levels of a plain logarithm from next to
    0 to where weights are; c, which says how many, is chosen by search.
    """
    steps = _steps(bits)
    return [np.sign(steps) * ((1 + c) ** np.abs(steps) - 1) / c for c in _CURVES]


def _steps(bits: int) -> npt.NDArray[np.float64]:
    half = 2 ** (bits - 1)
    steps: npt.NDArray[np.float64] = np.arange(-half, half) / half
    return steps


LEVELS: Mapping[str, Callable[[int], list[npt.NDArray[np.float64]]]] = {
    "nf": _normal_float,
    "fp": _float,
    "post": _powers_of_root_two,
    "power": _power_exponent,
    "twinlog": _twin_log,
}
"""What a name of a format begins with, and the tables of so many bits."""
