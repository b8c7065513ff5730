"""Rounding column after column with feedback: native for NumPy, the same on any array library.

With U of `onnxq.numerics.linalg` and e_j = w_j − ŵ_j, column i of every row becomes

    code_i = clip(round(t_i / scale) + zero),   t_i = w_i + Σ_{j<i} e_j U_ji.

Columns are done in the order of the arrays, in blocks that the caller chooses:

- `feed` adds the share of finished columns [first, last) to the sums Σ e_j U_ji of later ones: the
  trailing update, a matrix product;
- `targets` tells where the columns of a block would lie if none of them were rounded — the weights
  w' that GPTQ holds at this point, Σ over the finished columns and the best answer of the block to
  them: w' − w = (Σ e_j U_j·) U_BB⁻¹ — from which scales are chosen;
- `round` rounds the columns of a block one by one.

Natively, weights, factor and feedback are float32, and each sum is one chain of fused multiply-adds
in the order of the columns: the result does not depend on threads, blocks or instruction set. A sum
of n terms is then off by at most n · 2⁻²⁴ Σ|e_j U_ji|, and in practice by about sqrt(n) · 2⁻²⁴ of
it: with n = 4096 some 4e-6 of a step, so that only weights that close to a tie may take the other
of two codes, at the same error to first order.
"""

from __future__ import annotations

from typing import Any, Protocol

import array_api_compat
import numpy as np
import numpy.typing as npt

from onnxq.numerics import _native
from onnxq.numerics.threads import default_threads

__all__ = ["ArrayColumns", "Columns", "NativeColumns", "columns_of"]

Array = npt.NDArray[Any]

LANES = 64
"""Rows that the kernel has side by side."""


class Columns(Protocol):
    """A weight of which some columns are rounded; see the module docstring."""

    def feed(self, first: int, last: int, begin: int, end: int) -> None:
        """Add to the feedback of columns [begin, end) the share of finished [first, last)."""

    def targets(self, begin: int, end: int) -> Array:
        """Columns [begin, end) if they were not rounded; feedback of all before must be there."""

    def round(self, begin: int, end: int, scales: Array, zeros: Array | None, group: Array) -> None:
        """Round columns [begin, end), whose feedback from columns before must be there.

        Args:
            begin: first column.
            end: one past the last column.
            scales: ``[rows, groups]`` float32; not 0.
            zeros: ``[rows, groups]``, None when symmetric.
            group: int32 ``[end - begin]``: the column of ``scales`` that each column takes.
        """

    def codes(self) -> Array:
        """Codes ``[rows, columns]``, int8 when the lowest code is negative, else uint8."""

    def errors(self) -> Array:
        """Errors w − ŵ of the finished columns, ``[rows, columns]``."""


class NativeColumns:
    """`Columns` on the native kernel; float32, any number of threads, the same bytes."""

    def __init__(
        self,
        weight: Array,
        upper: Array,
        limits: tuple[int, int],
        *,
        threads: int | None = None,
        instruction_set: str = "",
    ) -> None:
        """Start.

        Args:
            weight: ``[rows, columns]``, finite; taken as float32.
            upper: U, ``[columns, columns]``; taken as float32.
            limits: lowest and highest code.
            threads: of the kernel; all CPUs of this process when None.
            instruction_set: ``generic``, ``avx2`` or ``avx512``; the best there is when empty.
        """
        self._weight = np.ascontiguousarray(weight, np.float32)
        self._upper = np.ascontiguousarray(upper, np.float32)
        self._limits = limits
        self._how = (threads or default_threads(), instruction_set)
        rows, columns = self._weight.shape
        self._panels = -(-rows // LANES)
        self._state = np.zeros((self._panels, columns, LANES), np.float32)
        self._codes = np.zeros((rows, columns), np.uint8)

    def feed(self, first: int, last: int, begin: int, end: int) -> None:
        """See `Columns`."""
        if first < last:
            _native.add_feedback(*self._arrays, first, last, begin, end, *self._how)

    def targets(self, begin: int, end: int) -> Array:
        """See `Columns`."""
        wanted = np.empty((self._weight.shape[0], end - begin), np.float32)
        _native.find_targets(*self._arrays, begin, end, wanted, *self._how)
        return wanted

    def round(self, begin: int, end: int, scales: Array, zeros: Array | None, group: Array) -> None:
        """See `Columns`."""
        shown = (
            self._padded(scales, 1),
            self._padded(np.zeros_like(scales) if zeros is None else zeros, 0),
        )
        _native.round_columns(
            *self._arrays,
            begin,
            end,
            *shown,
            np.ascontiguousarray(group, np.int32),
            *self._limits,
            self._codes,
            *self._how,
        )

    def codes(self) -> Array:
        """See `Columns`."""
        return self._codes.view(np.int8) if self._limits[0] < 0 else self._codes

    def errors(self) -> Array:
        """See `Columns`."""
        rows, columns = self._weight.shape
        return self._state.swapaxes(1, 2).reshape(-1, columns)[:rows]

    @property
    def _arrays(self) -> tuple[Array, Array, Array]:
        return self._weight, self._upper, self._state

    def _padded(self, values: Array, fill: int) -> Array:
        """[groups, rows filled up to whole panels] float32."""
        rows, groups = values.shape
        padded = np.full((groups, self._panels * LANES), fill, np.float32)
        padded[:, :rows] = values.T
        return padded


class ArrayColumns:
    """`Columns` in plain array operations: the meaning, for any array library, device and type."""

    def __init__(self, weight: Array, upper: Array, limits: tuple[int, int]) -> None:
        """Start; all arithmetic is in the type of ``weight``."""
        self._xp = array_api_compat.array_namespace(weight, upper)
        self._weight = weight
        self._upper = self._xp.astype(upper, weight.dtype)
        self._limits = limits
        self._state: Array = self._xp.zeros_like(weight)
        self._steps = self._xp.zeros_like(weight)

    def feed(self, first: int, last: int, begin: int, end: int) -> None:
        """See `Columns`."""
        if first < last:
            errors = self._state[:, first:last]
            self._state[:, begin:end] += errors @ self._upper[first:last, begin:end]

    def targets(self, begin: int, end: int) -> Array:
        """See `Columns`."""
        inner = self._upper[begin:end, begin:end]
        moves = self._xp.linalg.solve(inner.T, self._state[:, begin:end].T).T
        wanted: Array = self._weight[:, begin:end] + moves
        return wanted

    def round(self, begin: int, end: int, scales: Array, zeros: Array | None, group: Array) -> None:
        """See `Columns`."""
        xp, (lowest, highest) = self._xp, self._limits
        dtype = self._weight.dtype
        scales = xp.astype(scales, dtype)
        shift = xp.zeros_like(scales) if zeros is None else xp.astype(zeros, dtype)
        block, inner = self._state[:, begin:end], self._upper[begin:end, begin:end]
        for place in range(end - begin):
            column, at = begin + place, int(group[place])
            feedback = block[:, place] + block[:, :place] @ inner[:place, place]
            weight, scale, zero = self._weight[:, column], scales[:, at], shift[:, at]
            steps = (weight + feedback) / scale
            steps = xp.minimum(xp.maximum(steps, lowest - zero), highest - zero)
            steps = xp.round(steps)
            block[:, place] = weight - steps * scale
            self._steps[:, column] = steps + zero

    def codes(self) -> Array:
        """See `Columns`."""
        signed = self._limits[0] < 0
        codes: Array = self._xp.astype(self._steps, self._xp.int8 if signed else self._xp.uint8)
        return codes

    def errors(self) -> Array:
        """See `Columns`."""
        return self._state


def columns_of(
    weight: Array, upper: Array, limits: tuple[int, int], *, threads: int | None = None
) -> Columns:
    """The native `Columns` for NumPy arrays, else `ArrayColumns` in float32."""
    if isinstance(weight, np.ndarray):
        return NativeColumns(weight, upper, limits, threads=threads)
    xp = array_api_compat.array_namespace(weight)
    return ArrayColumns(xp.astype(weight, xp.float32), upper, limits)
