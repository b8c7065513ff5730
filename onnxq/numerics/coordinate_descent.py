"""Coordinate descent on the codes of a weight: native for NumPy, the same on any array library.

For every row w, with values v_j = (code_j − zero_j) · scale_j, the form (v − w) H (v − w)ᵀ is
minimised over the codes one at a time. With the residual r = (v − w) H, all others fixed, the form
is a parabola in v_j with its least value at v_j − r_j / H_jj, so the best code is

    code_j = clip(round((v_j − r_j / H_jj) / scale_j) + zero_j).

No step can make the form larger. Behdin et al., "QuantEase: Optimization-based Quantization for
Language Models" (arXiv:2309.01885); Zhang et al., "COMQ: A Backpropagation-Free
Algorithm for Post-Training Quantization" (arXiv:2403.07134).

- *Cyclic*: column after column, again and again until no code changes (QuantEase).
- *Greedy*: first, in every row, the one step that gains most, until none gains; then cyclic sweeps,
  which find what rounding errors hid. COMQ sorts the columns once by |w_j|·sqrt(H_jj); here the
  gain itself is known for all columns after every step, so the next one is the best there is
  (Gauss–Southwell rule).

Precision. Sweeps compute r for 48 columns at once from the errors e = v − w themselves, never by
updating it from one sweep to the next, which would drift. Sums are float32, 64 products at a time:
r_j is off by less than u = 2⁻²¹ sqrt(H_jj) Σ_k |e_k| sqrt(H_kk), eight roundings of what bounds its
terms. A code moves only when the optimum lies `SLACK` of a step past the middle between it and a
neighbour, so a tie is no reason to move for ever, and a move that u made a wrong one raises the
form by at most 2 s u − 2 SLACK H_jj s² ≤ u² / (2 SLACK H_jj) = 2⁻³⁴ (Σ_k |e_k| sqrt(H_kk))².
Columns that no input reaches (H_jj below the smallest normal float32) keep their codes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

from onnxq.numerics import _native
from onnxq.numerics.threads import default_threads

__all__ = ["SLACK", "CodeGrid", "descend", "descend_arrays"]

Array = npt.NDArray[Any]

SLACK = 2.0**-9
"""How far past the middle between two codes, in steps, the optimum lies before a code moves."""

_BLOCK = 64  # columns whose residual is computed at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeGrid:
    """The values that codes stand for: ``(code - zero) * scale``.

    Attributes:
        scales: ``[rows, groups]`` float32, not 0; NumPy or torch.
        zeros: ``[rows, groups]`` uint8; None when symmetric.
        group: columns that share a scale; the last group of a row may be short.
        lowest: the smallest code.
        highest: the largest code.
    """

    scales: Array
    zeros: Array | None
    group: int
    lowest: int
    highest: int


def descend(
    target: Array,
    hessian: Array,
    codes: Array,
    grid: CodeGrid,
    *,
    sweeps: int,
    greedy: bool = False,
    threads: int | None = None,
) -> tuple[Array, int]:
    """Improve codes one at a time until none can be improved, or for at most ``sweeps`` sweeps.

    Args:
        target: ``[rows, columns]``, what the codes should stand for; taken as float32.
        hessian: ``[columns, columns]``, symmetric, positive semidefinite, finite; taken as float32.
        codes: ``[rows, columns]``, where to start; int8 when symmetric, else uint8.
        grid: what codes stand for.
        sweeps: at most, over all columns; greedy steps before them number at most
            ``sweeps * columns`` for each row.
        greedy: see the module docstring.
        threads: of the kernel; all CPUs of this process when None. The result does not depend on
            it.

    Returns:
        The codes, and how many of them the last sweep changed: 0 when no code can be improved.
    """
    if not isinstance(target, np.ndarray):
        return descend_arrays(target, hessian, codes, grid, sweeps=sweeps, greedy=greedy)
    found = np.array(codes, order="C")
    zeros = np.empty((len(target), 0), np.uint8) if grid.zeros is None else grid.zeros
    left = _native.descend(
        target.astype(np.float32, copy=False),
        np.ascontiguousarray(hessian, np.float32),
        found.view(np.uint8),
        np.ascontiguousarray(grid.scales, np.float32),
        np.ascontiguousarray(zeros, np.uint8),
        grid.group,
        grid.lowest,
        grid.highest,
        sweeps,
        greedy,
        threads or default_threads(),
    )
    return found, left


def descend_arrays(
    target: Array,
    hessian: Array,
    codes: Array,
    grid: CodeGrid,
    *,
    sweeps: int,
    greedy: bool = False,
) -> tuple[Array, int]:
    """The meaning of `descend`, in plain array operations, in the precision of ``hessian``."""
    state = _State(target, hessian, codes, grid)
    if greedy:
        state.descend_steepest(sweeps * target.shape[1])
    left = 0
    for _ in range(sweeps):
        left = state.sweep()
        if left == 0:
            break
    return state.codes(codes.dtype), left


class _State:
    """Codes as whole steps away from the zero point, and the errors they make."""

    def __init__(self, target: Array, hessian: Array, codes: Array, grid: CodeGrid) -> None:
        self._xp = xp = array_api_compat.array_namespace(target, hessian)
        self._hessian = hessian
        self._target = xp.astype(target, hessian.dtype)
        self._scales = self._spread(grid.scales, grid)
        self._zeros = None if grid.zeros is None else self._spread(grid.zeros, grid)
        shift = 0 if self._zeros is None else self._zeros
        self._low = xp.zeros_like(self._scales) + grid.lowest - shift
        self._high = xp.zeros_like(self._scales) + grid.highest - shift
        self._steps = xp.astype(codes, hessian.dtype) - shift
        self._error = self._steps * self._scales - self._target
        diagonal = xp.linalg.diagonal(hessian)
        # float32's smallest normal number: the kernel, which divides in it, does the same.
        reached = diagonal >= 2.0**-126
        self._power = xp.where(reached, diagonal, xp.zeros_like(diagonal))
        self._inverse = xp.where(reached, 1 / xp.where(reached, diagonal, 1.0), 0.0 * diagonal)

    def sweep(self) -> int:
        """Every column once, in order; returns how many codes changed."""
        xp, columns, changed = self._xp, self._target.shape[1], 0
        for begin in range(0, columns, _BLOCK):
            end = min(begin + _BLOCK, columns)
            residual = self._error @ self._hessian[:, begin:end]
            inner = self._hessian[begin:end, begin:end]
            for column in range(begin, end):
                at = column - begin
                cell = (slice(None), slice(column, column + 1))
                steps, _ = self._best(cell, residual[:, at : at + 1])
                error = steps * self._scales[cell] - self._target[cell]
                moved = steps != self._steps[cell]
                delta = xp.where(moved, error - self._error[cell], 0.0 * error)
                changed += int(xp.sum(xp.astype(moved, xp.int64)))
                self._steps[cell] = steps
                self._error[cell] = self._error[cell] + delta
                residual = residual + delta * inner[at : at + 1, :]
        return changed

    def descend_steepest(self, most_steps: int) -> None:
        """In every row the single step that gains most, until none gains."""
        xp = self._xp
        residual = self._error @ self._hessian
        rows = xp.arange(residual.shape[0], device=array_api_compat.device(residual))
        everywhere = (slice(None), slice(None))
        for _ in range(most_steps):
            steps, shift = self._best(everywhere, residual)
            move = steps - self._steps
            gain = self._power * self._scales**2 * move * (2 * shift - move)
            best = xp.argmax(gain, axis=1)
            gains = gain[rows, best] > 0
            if not bool(xp.any(gains)):
                break
            taken = xp.where(gains, move[rows, best], 0.0 * move[rows, best])
            self._steps[rows, best] = self._steps[rows, best] + taken
            delta = taken * self._scales[rows, best]
            residual = residual + delta[:, None] * xp.take(self._hessian, best, axis=0)
        self._error = self._steps * self._scales - self._target

    def codes(self, dtype: Any) -> Array:
        """The codes as they are stored."""
        shift = 0 if self._zeros is None else self._zeros
        codes: Array = self._xp.astype(self._steps + shift, dtype)
        return codes

    def _best(self, cell: tuple[slice, slice], residual: Array) -> tuple[Array, Array]:
        """The best steps with all others fixed, and how far away the optimum is, in steps."""
        xp = self._xp
        steps = self._steps[cell]
        shift = -residual * self._inverse[cell[1]] / self._scales[cell]
        optimum = xp.minimum(xp.maximum(steps + shift, self._low[cell]), self._high[cell])
        moves = xp.abs(optimum - steps) > 0.5 + SLACK
        return xp.where(moves, xp.round(optimum), steps), shift

    def _spread(self, values: Array, grid: CodeGrid) -> Array:
        """One value for every column, in the precision of the Hessian."""
        xp, columns = self._xp, self._target.shape[1]
        wide: Array = xp.repeat(
            xp.astype(values, self._hessian.dtype), min(grid.group, columns), axis=1
        )
        return wide[:, :columns]
