"""Bitshift trellises: sequences whose every element is a function of the last 16 bits or so.

A sequence of n = vector · T values is a ring of T · step_bits bits, ``step_bits`` to a step. The
state of step t is the ``state_bits`` bits that begin at bit t · step_bits, lowest bit first; its
values are those that a code gives to the state. Neighbours share all but ``step_bits`` of their
bits, so a decoder needs no more than a window over the bits and a function of it, while the values
that a sequence may take lie as in a space of many dimensions (Tseng et al., QTIP,
arXiv:2406.11235, section 3). The nearest sequence is found by Viterbi's algorithm. That the ring
closes is met as QTIP does (section 3.2, algorithm 4): a first search, over a window around the
joint of the ring, chooses the bits that both ends share; a second keeps to them.

The codes (`CODES`), each a whole number per state, so that every runtime gets the same bits:

- ``1mad``: the sum of the four bytes of (a s + b mod 2³²), less 510: near a Gaussian.
- ``3inst``: both halves of (a s + b mod 2³²), masked to sign, two bits of exponent and mantissa
  and joined with the bits of 0.922, as float16 numbers; their sum, in units of 2⁻¹³.
- ``hyb``: a pair to a step. Of each byte of the upper half of (a s mod 2³²), six bits choose one of
  64 magnitudes and one a sign. QTIP's code of this name looks up pairs of numbers that were fitted
  to pairs of Gaussian ones, with one sign; numbers that are looked up one by one lose less here
  (0.0677 against 0.0704 at 2 bits), and a table of 128 bytes is one instruction of AVX-512 VBMI.

Constants of the first two are QTIP's, except that the low half of b is 0, so that 16-bit arithmetic
needs no carry. That of ``hyb`` is the best of sixteen random ones, its magnitudes are quantiles of
the normal distribution.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.numerics import _native
from onnxq.numerics.threads import default_threads

__all__ = ["CODES", "Code", "Trellis", "find_paths", "states_of"]

Array = npt.NDArray[Any]
_Whole = npt.NDArray[np.int16]

LENGTH = 256
"""Values of a whole sequence."""

LEAST_OVERLAP = 5
"""Bits that neighbours share at least: the kernel has 32 overlaps side by side."""


def _one_mad(states: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
    mixed = states * np.uint32(34038481) + np.uint32(0x0491_0000)
    values: npt.NDArray[np.int32] = mixed.view(np.uint8).reshape(-1, 4).sum(1, np.int32) - 510
    return values[:, None]


def _three_instructions(states: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
    mixed = states * np.uint32(89226354) + np.uint32(0x03D4_0000)
    halves = (mixed.view(np.uint16).reshape(-1, 2) & np.uint16(0x8FFF)) ^ np.uint16(0x3B60)
    # Exponents are 12 to 15: in units of 2^-13 even the smallest has a whole mantissa.
    numbers = halves.view(np.float16).astype(np.float32) * 8192
    values: npt.NDArray[np.int32] = numbers.sum(axis=1, keepdims=True).astype(np.int32)
    return values


def _hybrid(states: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
    sizes, factor = _native.trellis_hybrid()
    table = np.array([*sizes, *(-size for size in sizes)], np.int32)
    mixed = (states * np.uint32(factor)).view(np.uint8).reshape(-1, 4)[:, 2:]
    values: npt.NDArray[np.int32] = table[mixed & 127]
    return values


@dataclasses.dataclass(frozen=True)
class Code:
    """What a state stands for.

    Attributes:
        name: as in the names of formats.
        vector: values of a state.
        unit: what its whole numbers are multiplied with, a power of two.
    """

    name: str
    vector: int
    unit: float


CODES = {
    code.name: code
    for code in (Code("1mad", 1, 2.0**-7), Code("3inst", 1, 2.0**-13), Code("hyb", 2, 2.0**-5))
}
"""Codes by name."""

_VALUES = {"1mad": _one_mad, "3inst": _three_instructions, "hyb": _hybrid}


@functools.lru_cache(maxsize=16)
def _whole_values(name: str, state_bits: int) -> npt.NDArray[np.int32]:
    states = np.arange(2**state_bits, dtype=np.uint32)
    values = _VALUES[name](states)
    values.flags.writeable = False
    return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trellis:
    """A trellis with its code.

    Attributes:
        code: key of `CODES`.
        step_bits: bits of a step, 1 to 4 for one value, 3 to 8 for two.
        state_bits: bits of a state, up to 16.
    """

    code: str
    step_bits: int
    state_bits: int = 16

    @property
    def vector(self) -> int:
        """Values of a state."""
        return CODES[self.code].vector

    def whole_values(self) -> npt.NDArray[np.int32]:
        """The whole numbers of every state, ``[2^state_bits, vector]``."""
        return _whole_values(self.code, self.state_bits)

    def values(self) -> npt.NDArray[np.float32]:
        """The values of every state, ``[2^state_bits, vector]``, exact."""
        return self.whole_values().astype(np.float32) * np.float32(CODES[self.code].unit)


def states_of(trellis: Trellis, codes: Array) -> npt.NDArray[np.uint16]:
    """States of rings from the bits of their steps.

    Args:
        trellis: how many bits a step and a state have.
        codes: ``[..., steps]`` in 0 .. 2^step_bits − 1.

    Returns:
        uint16 ``[..., steps]``: the bits of a step are the lowest of its state.
    """
    states = np.zeros(codes.shape, np.uint32)
    wide = codes.astype(np.uint32)
    for later in range(-(-trellis.state_bits // trellis.step_bits)):
        states |= np.roll(wide, -later, axis=-1) << np.uint32(later * trellis.step_bits)
    return (states & np.uint32(2**trellis.state_bits - 1)).astype(np.uint16)


def find_paths(
    trellis: Trellis,
    values: Array,
    targets: Array,
    *,
    metric: Array | None = None,
    window: int | None = None,
    threads: int | None = None,
    instruction_set: str = "",
) -> npt.NDArray[np.uint16]:
    """The states whose values lie nearest to each sequence of targets, in squared distance.

    With a metric M = L D Lᵀ, L unit lower triangular, an error costs D_c (e_c + Σ_{l>c} e_l L_lc)²
    at column c: every path carries the sums of the errors that it made at later columns, as in
    per-survivor processing (Raheli, Polydoros and Tzou, 1995, doi:10.1109/26.380039). What it finds
    is the best there is only as far as a state knows those errors; of 16 columns at 2 bits the
    last six or eight.

    Distances are compared in 16 bits: values and targets as multiples of 1/8192, squares as
    multiples of 1/2048, and for three and four bits a weight of 1/8192 and 1/32768.

    Args:
        trellis: the trellis.
        values: ``[2^state_bits, vector]``: those of the code, scaled so that their spread is
            about 1; what is beyond ±4 is taken as ±4.
        targets: ``[sequences, steps, vector]``, in the same units.
        metric: M, ``[columns, columns]``, positive definite: the errors e of every run of as many
            values, a row, cost e M eᵀ instead of their squares; up to 16, a whole number of steps.
        window: steps before and behind the joint of the ring that choose its bits, an even number;
            a quarter of the steps when None, with a metric an eighth. Twice as many lower the
            squared distance by 0.4 % with 2 bits a weight, and take a third more time.
        threads: of the kernel; the result does not depend on it.
        instruction_set: ``generic``, ``avx2`` or ``avx512``; the best there is when empty.

    Returns:
        uint16 ``[sequences, steps]``; their low ``step_bits`` bits are the codes.

    Raises:
        MemoryError: none was left.
    """
    sequences, steps, _ = targets.shape
    # The kernel shifts new bits in from below: for it time runs backwards.
    backwards = np.ascontiguousarray(_fixed(targets)[:, ::-1])
    states = np.empty((sequences, steps), np.uint16)
    weights, feedback, units = _shaping(metric, trellis.step_bits / trellis.vector)
    enough = _native.find_paths(
        np.ascontiguousarray(_fixed(values).T),
        backwards,
        states,
        trellis.step_bits,
        trellis.state_bits,
        max(2, steps // (8 if metric is None else 16) * 2) if window is None else window,
        weights,
        feedback,
        units,
        threads or default_threads(),
        instruction_set,
    )
    if not enough:
        raise MemoryError(f"no memory for a trellis of {2**trellis.state_bits} states")
    return np.ascontiguousarray(states[:, ::-1])


def _shaping(metric: Array | None, rate: float) -> tuple[_Whole, _Whole, _Whole]:
    """√D, with a mean of 1 over D, L, and units of what is carried, for the kernel; or nothing.

    What is carried to a column is kept in 8 bits, which reach to five and a half times its spread:
    that of L⁻¹ − 1 times errors √D (e + carried) that are as white and as small as a good search
    leaves them.
    """
    if metric is None:
        return np.zeros(0, np.int16), np.zeros((0, 0), np.int16), np.zeros(0, np.int16)
    lower = np.linalg.cholesky(metric.astype(np.float64))
    roots = np.diagonal(lower)
    unit = lower / roots
    left = 1.1 * 2.0**-rate * np.exp(np.mean(np.log(roots))) / roots
    carried = left[:, None] * (np.linalg.inv(unit) - np.eye(len(unit)))
    spread = np.sqrt(np.square(carried).sum(axis=0))
    units = np.clip(np.rint(spread * (5.5 / 127 * 8192)), 4, 258).astype(np.int16)
    return _fixed(roots / np.sqrt(np.mean(np.square(roots)))), _fixed(np.tril(unit, -1)), units


def _fixed(numbers: Array) -> npt.NDArray[np.int16]:
    whole: npt.NDArray[np.int16] = np.clip(np.rint(numbers * 8192), -32767, 32767).astype(np.int16)
    return whole
