"""Hadamard matrices of any order that is known here, and what stands for one where none is.

A Hadamard matrix has entries ±1 and H Hᵀ = n I; H / √n is the rotation that spreads one large
channel evenly over all (QuIP, Chee et al. 2023, arXiv:2307.13304, section 4; QuaRot, Ashkboos et
al. 2024, arXiv:2404.00456, section 3). There is none of order n > 2 unless 4 divides n.

**The rule** (`factor_size`). Write n = m · 2ᵏ with the smallest m of which a matrix is known:
m = 1, or Paley's constructions over GF(q) (12, 20, 28, 36, 44, 52, 60, ...), or Williamson's (92
and 172), or a product of two of these. Then

    H_n = H_m ⊗ S,   S = [[1, 1], [1, −1]]^{⊗k} (Sylvester),   exact, entries ±1.

Channel i · 2ᵏ + j of a row is entry (i, j) of an m × 2ᵏ matrix: S acts on the last axis by the fast
Walsh–Hadamard transform, H_m on the other. 576 = 36 · 16, 1536 = 12 · 128, 11008 = 172 · 64.
Where no such m is known (n odd, twice odd, or rare: 2 · 9, 116, 4304 = 16 · 269), m is the odd part
of n and Hartley's matrix stands for H_m: cas(2πij/m) = cos + sin, symmetric, with
C Cᵀ = m I (R. Bracewell, J. Opt. Soc. Am. 73, 1983). Its entries reach √2 instead of 1: the
spread is at most √2 off.

**The convention** everywhere: a row vector is rotated as x · H / √n. H need not be symmetric
(Paley's are not), and x · Hᵀ / √n undoes it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.numerics.paley import is_paley_order, paley
from onnxq.numerics.williamson import is_williamson_order, williamson

__all__ = ["Factors", "core_matrix", "factor_size", "fast_apply", "hadamard", "sylvester"]

Array = npt.NDArray[Any]

_DENSE = 64
"""Sylvester matrices up to this order are applied as one product, larger ones as several."""


@dataclasses.dataclass(frozen=True)
class Factors:
    """n = core · power: H_n = H_core ⊗ S_power.

    Attributes:
        core: order of the small matrix; 1 for a power of two.
        power: order of the Sylvester matrix, a power of two.
        is_hadamard: whether the small matrix has entries ±1; otherwise it is Hartley's.
    """

    core: int
    power: int
    is_hadamard: bool

    @property
    def size(self) -> int:
        """The order n of the product."""
        return self.core * self.power

    def __str__(self) -> str:
        """As a report writes it: ``H36 ⊗ S16``, ``S512`` or ``Hartley9 ⊗ S2``."""
        parts = [f"H{self.core}" if self.is_hadamard else f"Hartley{self.core}"]
        parts = [] if self.core == 1 else parts
        if self.power > 1 or not parts:
            parts.append(f"S{self.power}")
        return " ⊗ ".join(parts)


@functools.cache
def factor_size(size: int) -> Factors:
    """The factors by the rule of the module docstring.

    Args:
        size: the order n, at least 1.

    Raises:
        FormatError: it is below 1.
    """
    if size < 1:
        raise FormatError(f"a rotation of {size} channels: give a size of at least 1.")
    power = size & -size
    odd = size // power
    while power >= 1:
        if _is_known(size // power):
            return Factors(size // power, power, is_hadamard=True)
        power //= 2
    return Factors(odd, size // odd, is_hadamard=False)


def hadamard(size: int) -> npt.NDArray[np.float64]:
    """H_n ``[n, n]`` float64 with entries exactly ±1 and H Hᵀ = n I, by the rule.

    Raises:
        FormatError: none is known of this order.
    """
    factors = factor_size(size)
    if not factors.is_hadamard:
        why = "there is none unless 4 divides it" if size % 4 else "no construction here gives it"
        raise FormatError(
            f"no Hadamard matrix of order {size} is known: {why}. core_matrix and fast_apply take "
            f"{factors} for it, which is orthogonal too, and block_hadamard any even order."
        )
    matrix: Array = np.kron(core_matrix(factors), sylvester(factors.power))
    return matrix


@functools.cache
def core_matrix(factors: Factors) -> npt.NDArray[np.float64]:
    """The small factor H_m ``[m, m]``, H_m H_mᵀ = m I: ±1, or Hartley's; read-only float64."""
    if factors.is_hadamard:
        core = _known(factors.core).astype(np.float64)
    else:
        index = np.arange(factors.core)
        angles = 2 * np.pi * (index[:, None] * index[None, :] % factors.core) / factors.core
        core = np.cos(angles) + np.sin(angles)
    core.flags.writeable = False
    return core


@functools.cache
def sylvester(size: int) -> npt.NDArray[np.float64]:
    """[[1, 1], [1, −1]]^{⊗k} of order 2ᵏ: symmetric, entry (i, j) is (−1)^(bits of i & j)."""
    if size < 1 or size & (size - 1):
        raise FormatError(f"a Sylvester matrix has an order that is a power of two, not {size}.")
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix.flags.writeable = False
    return matrix


def fast_apply(x: Array, size: int | None = None, *, transposed: bool = False) -> Array:
    """Rotate along the last axis: x · H / √n, in O(n (m + log n)) for each row.

    Args:
        x: ``[..., c]`` float; c is a multiple of n, and each run of n channels is rotated alone.
        size: n; all channels at once when None.
        transposed: x · Hᵀ / √n, which undoes it.

    Returns:
        A new array of the shape of ``x``, float64 for float64 and otherwise float32.

    Raises:
        FormatError: the channels are no multiple of n.
    """
    size = x.shape[-1] if size is None else size
    if size < 1 or x.shape[-1] % size:
        raise FormatError(
            f"{x.shape[-1]} channels cannot be rotated in blocks of {size}: "
            "choose a block that divides them."
        )
    factors = factor_size(size)
    dtype = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
    rows: Array = x.astype(dtype, copy=False).reshape(-1, factors.core, factors.power)
    if factors.core > 1:
        core: Array = core_matrix(factors).astype(dtype)
        rows = _times_core(rows, core.T if transposed else core)
    rows = _walsh_hadamard(rows)
    scaled: Array = rows / np.asarray(math.sqrt(size), dtype)
    return scaled.reshape(x.shape)


def _times_core(rows: Array, core: Array) -> Array:
    """Rows ``[..., core, power]`` times a matrix along the axis before the last.

    One product: a small one for each row wakes the threads of the BLAS every time, which takes 40
    times as long on a busy machine.
    """
    turned = np.ascontiguousarray(rows.swapaxes(1, 2))
    product = (turned.reshape(-1, len(core)) @ core).reshape(turned.shape)
    return np.ascontiguousarray(product.swapaxes(1, 2))


def _walsh_hadamard(rows: Array) -> Array:
    """Rows times the Sylvester matrix of their last axis, as products with smaller ones."""
    size = rows.shape[-1]
    behind = 1
    while behind < size:
        part = min(_DENSE, size // behind)
        factor = sylvester(part).astype(rows.dtype)
        rows = rows.reshape(-1, size // (part * behind), part, behind)
        rows = factor @ rows if behind > 1 else (rows[..., 0] @ factor)[..., None]
        behind *= part
    return rows


def _is_known(order: int) -> bool:
    return order == 1 or _has_construction(order) or _split(order) is not None


def _has_construction(order: int) -> bool:
    return is_paley_order(order) or is_williamson_order(order)


@functools.cache
def _split(order: int) -> int | None:
    """The smaller of two orders with constructions whose product this is."""
    if order % 16:
        return None
    small = range(12, math.isqrt(order) + 1, 4)
    fits = (a for a in small if order % a == 0 and _has_construction(a))
    return next((a for a in fits if _has_construction(order // a)), None)


def _known(order: int) -> npt.NDArray[np.int8]:
    if order == 1:
        return np.ones((1, 1), np.int8)
    if is_paley_order(order):
        return paley(order)
    if is_williamson_order(order):
        return williamson(order)
    small = _split(order)
    if small is None:
        raise FormatError(f"no Hadamard matrix of order {order} is known: use factor_size.")
    return np.kron(_known(small), _known(order // small))
