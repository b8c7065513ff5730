"""Round to nearest with one scale per group of a row: native kernel and NumPy reference.

A weight is ``[rows, columns]`` float32; each row is cut into groups of ``group`` neighbouring
columns (the last one may be short), and each group gets one scale and, when asymmetric, one zero
point. The value of a code is ``(code - zero) * scale``. Both implementations do the same IEEE
float32 operations in the same order, so their results are equal bit for bit.

Scales. With ``q = 2**bits - 1`` levels above the lowest and ``h = 2**(bits - 1)``:

- asymmetric: ``[low, high]`` is the range of the group widened to hold 0,
  ``scale = high/q - low/q`` and ``zero = round(-low/scale)``, so that 0 is always exact;
- symmetric, 8 bits: codes in ``[-127, 127]``, ``scale = absmax/127``. TensorRT takes no -128 in a
  weight, and ``u8 x s8`` products of VNNI-less CPUs saturate sooner with it;
- symmetric, fewer bits: the element of largest magnitude maps to ``-h`` whatever its sign
  (``scale = extreme/-h``, so a scale may be negative), as llama.cpp's ``Q4_0`` and ONNX Runtime's
  MatMulNBits quantizer do. On Gaussian weights in groups of 32 it gives 21.3 dB at 4 bits where
  the restricted range ``[-7, 7]`` gives 20.3 dB, and 8.8 dB against 3.6 dB at 2 bits;
- symmetric with ``positive=True`` (TensorRT takes positive scales only): ``scale = absmax/h``, the
  far positive end clips; 20.6 and 8.1 dB on the same weights.

Search. ``shrink`` lists factors by which the scale of the plain range is multiplied; per group the
one with the smallest sum of squared errors wins, the earlier one on a tie. Clipping search over a
grid of factors is from Banner et al. 2019 (arXiv:1810.05723, section 3) and, per weight group, from
AWQ (Lin et al. 2023, arXiv:2306.00978, ``auto_clip``) and OmniQuant (arXiv:2308.13137).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.numerics import _native
from onnxq.numerics.threads import default_threads

__all__ = [
    "MINMAX",
    "MSE_GRID",
    "Rounded",
    "Rounding",
    "pack_groups",
    "round_groups",
    "round_groups_reference",
]

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

MINMAX: tuple[float, ...] = (1.0,)
"""The factor list that keeps the plain range."""
MSE_GRID: tuple[float, ...] = tuple(float(np.float32(2.0 ** (-i / 8))) for i in range(25))
"""From 1 down to 1/8 in steps of 2^(-1/8): fine enough that the best step is missed by at most
4.5 %, wide enough for 2-bit codes of a heavy-tailed channel."""

_HALF_TINY = np.float32(2.0**-24)
_FLOAT_TINY = np.float32(2.0**-126)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounding:
    """How groups are rounded.

    Attributes:
        bits: 1 to 8.
        symmetric: no zero points; codes are signed.
        group: columns that share a scale.
        positive: symmetric scales are kept positive.
        half_scales: scales are rounded to float16 before codes are chosen with them.
        shrink: factors tried on every scale, see the module docstring.
    """

    bits: int
    symmetric: bool
    group: int
    positive: bool = False
    half_scales: bool = False
    shrink: tuple[float, ...] = MINMAX

    @property
    def lowest(self) -> int:
        """The smallest code."""
        if not self.symmetric:
            return 0
        return -127 if self.bits == 8 else -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1 if self.symmetric else self.bits)) - 1


@dataclasses.dataclass(frozen=True)
class Rounded:
    """Codes int8 or uint8 ``[rows, columns]``, scales float32 and zeros uint8 ``[rows, groups]``.

    ``zeros`` is None when the rounding is symmetric. Packed, codes and zeros are those of
    `pack_groups`. ``squares`` is float64 ``[2, rows]``: of each row, the sum of squared rounding
    errors and the sum of squared values, good to about 1e-5; None where nobody has summed them.
    """

    codes: npt.NDArray[Any]
    scales: Floats
    zeros: Bytes | None
    squares: npt.NDArray[np.float64] | None = None


def round_groups(weight: Floats, how: Rounding, *, threads: int | None = None) -> Rounded:
    """Round ``weight`` [rows, columns] float32 by groups along its columns.

    The kernel reads row-major arrays and transposed views of them (the ``[K, N]`` weight of an
    ONNX MatMul is passed as ``w.T``) where they lie; only other strides are copied. The result
    does not depend on ``threads``.

    Raises:
        FormatError: NaN or infinity in the weight, or a scale too large for float16.
    """
    weight = _readable(weight)
    rows, columns = weight.shape
    groups = -(-columns // how.group)
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((rows, groups), np.float32)
    zeros = np.empty((rows, 0 if how.symmetric else groups), np.uint8)
    squares = np.empty((2, rows))
    status = _native.round_groups(
        weight, codes, scales, zeros, squares, *_arguments(how), threads or default_threads()
    )
    _check(status)
    if how.symmetric:
        return Rounded(codes.view(np.int8), scales, None, squares)
    return Rounded(codes, scales, zeros, squares)


def pack_groups(weight: Floats, how: Rounding, *, threads: int | None = None) -> Rounded:
    """Round ``weight`` [rows, columns] and write the codes packed, as MatMulNBits stores them.

    Args:
        weight: as for `round_groups`.
        how: bits must be 2, 4 or 8 and the group a multiple of 8.
        threads: see `round_groups`.

    Returns:
        Codes uint8 ``[rows, groups, group * bits / 8]``, element 0 in the low bits, codes shifted
        to be unsigned, a short last group filled up with the code of 0; scales float32
        ``[rows, groups]``; zero points packed in the same way ``[rows, ceil(groups * bits / 8)]``,
        None when symmetric (the zero point is then ``2**(bits - 1)``).

    Raises:
        FormatError: as for `round_groups`.
    """
    weight = _readable(weight)
    rows, columns = weight.shape
    groups = -(-columns // how.group)
    blobs = np.empty((rows, groups, how.group * how.bits // 8), np.uint8)
    scales = np.empty((rows, groups), np.float32)
    zeros = np.zeros((rows, 0 if how.symmetric else -(-groups * how.bits // 8)), np.uint8)
    squares = np.empty((2, rows))
    status = _native.pack_groups(
        weight, blobs, scales, zeros, squares, *_arguments(how), threads or default_threads()
    )
    _check(status)
    return Rounded(blobs, scales, None if how.symmetric else zeros, squares)


def round_groups_reference(weight: Floats, how: Rounding) -> Rounded:
    """The meaning of `round_groups`, in NumPy: same arguments, same bytes, same errors."""
    rows, columns = weight.shape
    groups = -(-columns // how.group)
    padded = np.zeros((rows, groups * how.group), np.float32)
    padded[:, :columns] = weight
    if not np.isfinite(padded).all():
        _check(1)
    w = padded.reshape(rows, groups, how.group)
    with np.errstate(over="ignore", under="ignore"):
        base, zero = _plain_scale(w, how)
        scale = _settle(base, np.float32(how.shrink[0]), how)
        if not np.isfinite(scale).all():
            _check(2)
        if len(how.shrink) > 1:
            scale = _search(w, base, zero, how)
        codes = _steps(w, scale, zero, how) + zero[..., None]
    codes = codes.reshape(rows, -1)[:, :columns].astype(np.int8 if how.symmetric else np.uint8)
    zeros = None if how.symmetric else zero.astype(np.uint8)
    return Rounded(np.ascontiguousarray(codes), scale, zeros)


def _plain_scale(w: Floats, how: Rounding) -> tuple[Floats, Floats]:
    """Scale (0 for an all-zero group) and zero point, both float32 ``[rows, groups]``."""
    low = np.minimum(w.min(axis=-1), np.float32(0))
    high = np.maximum(w.max(axis=-1), np.float32(0))
    if not how.symmetric:
        levels = np.float32(how.highest)
        base = high / levels - low / levels
        scale = _settle(base, np.float32(1), how)
        return base, np.clip(np.rint(-low / scale), 0, levels)
    extreme = np.where(high > -low, high, low)
    if how.bits == 8:
        base = np.abs(extreme) / np.float32(127)
    elif how.positive:
        base = np.abs(extreme) / np.float32(2 ** (how.bits - 1))
    else:
        base = extreme / np.float32(-(2 ** (how.bits - 1)))
    return base, np.zeros_like(base)


def _settle(base: Floats, factor: np.float32, how: Rounding) -> Floats:
    """The scale that is stored: shrunk, in its stored precision, and never 0 or subnormal."""
    scale = base * factor
    tiny = _FLOAT_TINY
    if how.half_scales:
        scale = scale.astype(np.float16).astype(np.float32)
        tiny = _HALF_TINY
    scale = np.where(np.abs(scale) < tiny, tiny, scale)
    return np.where(base == 0, np.float32(1), scale)


def _steps(w: Floats, scale: Floats, zero: Floats, how: Rounding) -> Floats:
    """The nearest whole number of steps, ties to even, inside the range of the codes."""
    ratio = w / scale[..., None]
    low = np.float32(how.lowest) - zero[..., None]
    high = np.float32(how.highest) - zero[..., None]
    steps: Floats = np.rint(np.clip(ratio, low, high))
    return steps


def _search(w: Floats, base: Floats, zero: Floats, how: Rounding) -> Floats:
    best = np.full(base.shape, np.inf, np.float32)
    chosen = _settle(base, np.float32(how.shrink[0]), how)
    for factor in how.shrink:
        scale = _settle(base, np.float32(factor), how)
        error = np.zeros_like(best)
        gap = w - _steps(w, scale, zero, how) * scale[..., None]
        for column in range(w.shape[-1]):
            error += gap[..., column] * gap[..., column]
        better = error < best
        best = np.where(better, error, best)
        chosen = np.where(better, scale, chosen)
    return chosen


def _readable(weight: Floats) -> Floats:
    """The array itself when one of its axes is contiguous, else a copy."""
    if weight.dtype == np.float32 and weight.itemsize in weight.strides and min(weight.strides) > 0:
        return weight
    return np.ascontiguousarray(weight, dtype=np.float32)


def _arguments(how: Rounding) -> tuple[int, int, bool, bool, bool, Floats]:
    shrink = np.array(how.shrink, np.float32)
    return how.group, how.bits, how.symmetric, how.positive, how.half_scales, shrink


def _check(status: int) -> None:
    if status == 1:
        raise FormatError(
            "the weight holds NaN or infinity, which no integer code can stand for: "
            "look at how the model was trained or exported, or leave this weight in float"
        )
    if status == 2:
        raise FormatError(
            "the weight is too large for float16 scales (a scale would be above 65504): "
            "choose scale_dtype='float32'"
        )
