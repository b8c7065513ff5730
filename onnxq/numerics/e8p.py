"""E8P: 65 536 points of the lattice E8, eight weights in sixteen bits, decoded by arithmetic.

From Tseng et al., "QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice
Codebooks" (arXiv:2402.04396, section 4.2 and appendix C.1). A point is

    p = gain · (σ ∘ m ± 1/4),   m one of 256 patterns of magnitudes, σ signs,

the patterns being the magnitudes of all vectors of D̂8 = D8 + 1/2 (half-integers with an even sum)
of squared length up to 10, which are 227, and 29 of the 56 of squared length 12 that have five 3/2
and three 1/2. D̂8 fixes the parity of the number of minus signs for every pattern, so seven signs
are stored and the eighth follows. Numbering:

- bits 8 to 15, the pattern: 8i + j below 64 has 5/2 at i and 3/2 at j (5/2 alone when i = j);
  64 and up have 3/2 at the ones of a mask, the masks that are patterns in ascending order;
- bits 0 to 6, minus signs of the first seven weights; bit 7, +1/4 rather than −1/4.

``gain`` is 1 in the lattice. The centre of the normal distribution's mass in the cells of long
points lies farther out, so at two bits points of squared length 10 and 12 have a gain of 8/7, which
takes the mean squared error on N(0, 1) from 0.0913 to 0.0889 and costs nothing to decode.

At three and four bits a second point stands for what the first has left: one of 256 of E8 (zero,
the 240 of squared length 2 and 15 of the 16 of ±2 along an axis), times 1/2; or one of E8P, times
2/7. There the gains are 1, and the sum is a whole number of quarters or of 28ths, within int8.

1-bit points: 0 to 127 have eight ±1/2, bits 0 to 6 the minus signs of seven, an even number in all;
128 to 239 have ±1 at i < j, in the order of (i, j) and four sign pairs each, bit 0 for i; 240 is
zero; 241 to 248 have +2 at i, 249 to 255 have −2 at i < 7.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.numerics import _native
from onnxq.numerics.threads import default_threads

__all__ = [
    "E8P_UNITS",
    "E8P_WIDTH",
    "bit_points",
    "e8p_costs",
    "e8p_integers",
    "e8p_stages",
    "full_signs",
    "pattern_gains",
    "pattern_magnitudes",
    "round_e8p",
]

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.uint16]

E8P_WIDTH = 8
"""Weights of a code."""

E8P_UNITS = {2: 28, 3: 4, 4: 28}
"""By bits per weight: how many of the whole numbers are 1 of the lattice."""


def e8p_stages(bits: int) -> int:
    """Codes for eight weights: 1 at two bits, 2 at three and four."""
    return 1 if bits == 2 else 2


@functools.cache
def pattern_magnitudes() -> npt.NDArray[np.int8]:
    """The 256 patterns in quarters: ``[256, 8]`` of 2, 6 and 10."""
    masks = np.array([[three, five] for three, five in _pattern_masks()])
    bits = masks[:, :, None] >> np.arange(E8P_WIDTH) & 1
    magnitudes: npt.NDArray[np.int8] = (2 + 4 * bits.sum(axis=1)).astype(np.int8)
    return magnitudes


@functools.cache
def pattern_gains(bits: int) -> npt.NDArray[np.int8]:
    """What a pattern is multiplied by, ``[256]``: 7 or 8 at two bits, 1 at three and four."""
    if bits != 2:
        return np.ones(256, np.int8)
    square = np.square(pattern_magnitudes().astype(np.int32)).sum(axis=1)
    return np.where(square >= 160, 8, 7).astype(np.int8)


@functools.cache
def bit_points() -> npt.NDArray[np.int8]:
    """The points of the one-bit book in halves: ``[256, 8]`` of −4 to 4."""
    points = np.zeros((256, E8P_WIDTH), np.int8)
    signs = np.arange(128)[:, None] >> np.arange(7) & 1
    points[:128, :7] = 1 - 2 * signs
    points[:128, 7] = 1 - 2 * (signs.sum(axis=1) % 2)
    pairs = itertools.combinations(range(E8P_WIDTH), 2)
    for index, ((first, second), sign) in enumerate(itertools.product(pairs, range(4))):
        points[128 + index, first] = -2 if sign & 1 else 2
        points[128 + index, second] = -2 if sign & 2 else 2
    points[241:249] = 4 * np.eye(8, dtype=np.int8)
    points[249:256] = -4 * np.eye(8, dtype=np.int8)[:7]
    return points


def full_signs(codes: Codes) -> npt.NDArray[np.uint8]:
    """The minus signs of all eight weights of codes of E8P, one in each bit."""
    odd = ((pattern_magnitudes() == 6).sum(axis=1) % 2).astype(np.uint8)
    seven = (codes & 0x7F).astype(np.uint8)
    parity = seven ^ seven >> 4
    parity ^= parity >> 2
    parity ^= parity >> 1
    eighth = (parity ^ odd[codes >> 8]) & 1
    signs: npt.NDArray[np.uint8] = seven | eighth << 7
    return signs


def e8p_integers(codes: Codes, bits: int) -> npt.NDArray[np.int8]:
    """What codes stand for, as whole numbers of which `E8P_UNITS` are 1 of the lattice.

    Args:
        codes: ``[rows, vectors · e8p_stages(bits)]``, the codes of a vector side by side.
        bits: 2, 3 or 4.

    Returns:
        ``[rows, vectors · 8]``.
    """
    rows, stages = len(codes), e8p_stages(bits)
    first = _lattice_points(codes[:, ::stages], bits)
    if bits == 3:
        first += bit_points()[codes[:, 1::2]]
    elif bits == 4:
        first = (7 * first + 2 * _lattice_points(codes[:, 1::2], bits)).astype(np.int8)
    return first.reshape(rows, -1)


def round_e8p(
    values: npt.NDArray[np.float32],
    scales: npt.NDArray[np.float32],
    bits: int,
    *,
    threads: int | None = None,
    instructions: str = "",
) -> tuple[Codes, npt.NDArray[np.float32]]:
    """The nearest points, exactly but for ties within 1 part in 2^20; stage after stage.

    Args:
        values: ``[rows, columns]``, columns a multiple of 8, finite.
        scales: ``[rows]``, at least 0: what 1 of the lattice is; a row of 0 becomes zeros.
        bits: 2, 3 or 4.
        threads: of the kernel; the result does not depend on it.
        instructions: of the kernel, for tests; empty is the best there is.

    Returns:
        Codes ``[rows, columns / 8 · e8p_stages(bits)]`` and points ``[rows, columns]``.
    """
    values = np.ascontiguousarray(values, np.float32)
    rows, columns = values.shape
    codes = np.empty((rows, columns // E8P_WIDTH * e8p_stages(bits)), np.uint16)
    points = np.empty((rows, columns), np.float32)
    scales = np.ascontiguousarray(scales, np.float32)
    _native.e8p_round(
        values, scales, codes, points, bits, threads or default_threads(), instructions
    )
    return codes, points


def e8p_costs(
    values: npt.NDArray[np.float32],
    scales: npt.NDArray[np.float32],
    importance: npt.NDArray[np.float32],
    bits: int,
    *,
    threads: int | None = None,
) -> npt.NDArray[np.float64]:
    """Σ importance · (value − nearest point)² of every row, ``[rows]``; arguments of `round_e8p`.

    Args:
        values: ``[rows, columns]``.
        scales: ``[rows]``.
        importance: ``[columns]``.
        bits: 2, 3 or 4.
        threads: of the kernel; the result does not depend on it.
    """
    costs = np.empty(len(values), np.float64)
    _native.e8p_costs(
        np.ascontiguousarray(values, np.float32),
        np.ascontiguousarray(scales, np.float32),
        np.ascontiguousarray(importance, np.float32),
        costs,
        bits,
        threads or default_threads(),
        "",
    )
    return costs


def _pattern_masks() -> list[tuple[int, int]]:
    """Places of 3/2 or more, and of 5/2, for every pattern."""
    fives = [(1 << five | 1 << three, 1 << five) for five in range(8) for three in range(8)]
    return fives + [(mask, 0) for mask in range(256) if _is_pattern(mask)]


def _is_pattern(mask: int) -> bool:
    """Whether 3/2 at the ones of ``mask`` and 1/2 elsewhere is a pattern."""
    halves = ~mask & 0xFF
    if mask.bit_count() != 5:
        return mask.bit_count() < 5
    return (halves >> 4).bit_count() % 2 == 0 or halves == 0b10001100


def _lattice_points(codes: Codes, bits: int) -> npt.NDArray[np.int8]:
    """``[..., 8]``, the points of E8P with the gains of so many bits."""
    pattern = codes >> 8
    signs = full_signs(codes)[..., None] >> np.arange(E8P_WIDTH, dtype=np.uint8) & 1
    points = pattern_magnitudes()[pattern] * (1 - 2 * signs.astype(np.int8))
    points += np.where(codes & 0x80, 1, -1).astype(np.int8)[..., None]
    lattice: npt.NDArray[np.int8] = points * pattern_gains(bits)[pattern][..., None]
    return lattice
