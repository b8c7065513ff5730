"""LNQ: tables fitted to codes, and codes to tables, both on the full objective.

Minimizes tr((W − Ŵ)(H + λI)(W − Ŵ)ᵀ) over learned tables and codes, from those of another solver:
the best table for given codes in closed form, then every code set to the best one given all others,
in turn. No step raises the objective. Kim et al., "GuidedQuant: Large Language Model Quantization
via Exploiting End Loss Guidance" (arXiv:2505.07004), section 4 and algorithm 2: layer-wise
non-uniform quantization. `onnxq.numerics.entry_descent` has the algebra.

With ``start="nearest"`` and no rounds it is k-means weighted by the diagonal of H: SqueezeLLM (Kim
et al., arXiv:2306.07629).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.formats import Arrays, Format
from onnxq.formats.lut import LutFormat, points
from onnxq.numerics.entry_descent import descend_entries, entry_sums
from onnxq.solvers.coordinate_descent import Start, damped
from onnxq.solvers.gptq import gptq
from onnxq.solvers.inputs import checked_inputs, to_numpy
from onnxq.solvers.nearest import nearest
from onnxq.solvers.shrinkage import enough_damping
from onnxq.solvers.statistics import Statistics

__all__ = ["lnq"]

Array = npt.NDArray[Any]

_RIDGE = 1e-7
"""Of the mean diagonal of A: an entry that no column takes stays where it is."""


def lnq(
    weight: Array,
    fmt: LutFormat,
    statistics: Statistics | None = None,
    *,
    seed: int = 0,
    threads: int | None = None,
    start: Start = "gptq",
    rounds: int = 4,
    sweeps: int = 4,
    damping: float = 0.05,
) -> Arrays:
    """Improve the tables and codes of ``start`` in turn.

    Args:
        weight: ``[rows, columns]`` = ``[out, in]``, a float type; NumPy, or torch.
        fmt: a format of learned tables (``lut4``, ``lut3_g128``, ...).
        statistics: of the inputs of the layer; only the Hessian is used.
        seed: not used, nothing is random; every solver takes it.
        threads: of the kernels; the result does not depend on it.
        start: the solver of the first tables and codes, ``nearest`` or ``gptq``.
        rounds: fits of the tables, at most; it stops when no code changes any more. 0 gives what
            ``start`` gave.
        sweeps: over all columns for each fit of the codes, at most.
        damping: λ as a part of the mean diagonal of H, here and in ``gptq``; more than there, as
            in `coordinate_descent`: descent goes on until it fits the noise of H too.

    Returns:
        The arrays of ``fmt.encode``.

    Raises:
        FormatError: no statistics, statistics of another layer, an option that does not exist, a
            format without learned tables, or a weight that cannot be stored.
    """
    _check(fmt, start, rounds, sweeps)
    weight, hessian = checked_inputs("lnq", weight, statistics)
    damping = enough_damping(statistics, damping)
    if start == "gptq":
        arrays = gptq(weight, fmt, statistics, damping=damping, threads=threads)
    else:
        arrays = nearest(weight, fmt, statistics, threads=threads)
    del seed
    step = _Descent(to_numpy(weight), to_numpy(damped(hessian, damping)), fmt, sweeps, threads)
    for _ in range(rounds):
        before = arrays["codes"]
        arrays = step.codes(step.tables(arrays))
        if np.array_equal(arrays["codes"], before):
            break
    return arrays


def _check(fmt: Format, start: str, rounds: int, sweeps: int) -> None:
    if not isinstance(fmt, LutFormat) or not fmt.learned:
        raise FormatError(
            f"lnq fits learned tables, and {fmt} has none: use lut2, lut3 or lut4, or gptq, which "
            "takes every format."
        )
    if start not in ("gptq", "nearest"):
        raise FormatError(f"start is {start!r}; choose 'nearest' or 'gptq'.")
    if rounds < 0 or sweeps < 1:
        raise FormatError(f"lnq was given {rounds} rounds of {sweeps} sweeps; at least 0 of 1.")


@dataclasses.dataclass(frozen=True)
class _Descent:
    """The two steps, on one weight; neither raises the objective."""

    weight: Array
    hessian: Array
    fmt: LutFormat
    sweeps: int
    threads: int | None

    def codes(self, arrays: Arrays) -> Arrays:
        """The best codes for the tables, one at a time."""
        codes, _ = descend_entries(
            self.hessian,
            points(arrays["lut"], arrays["scales"]),
            arrays["codes"],
            self._error(arrays) @ self.hessian,
            group=self.fmt.group_size(self.weight.shape[1]),
            sweeps=self.sweeps,
            threads=self.threads,
        )
        return {**arrays, "codes": codes}

    def tables(self, arrays: Arrays) -> Arrays:
        """The best tables for the codes, group after group, as they are stored."""
        columns = self.weight.shape[1]
        size = self.fmt.group_size(columns)
        arrays = {key: array.copy() for key, array in arrays.items()}
        for group in range(arrays["lut"].shape[1]):
            here = slice(group * size, min((group + 1) * size, columns))
            self._fit(arrays, group, here)
        return arrays

    def _fit(self, arrays: Arrays, group: int, here: slice) -> None:
        entries = 2**self.fmt.bits
        codes = arrays["codes"]
        residual = self._error(arrays) @ self.hessian[:, here]
        quadratic = entry_sums(self.hessian, codes, entries, here, threads=self.threads)
        linear = np.stack(
            [np.sum(residual, axis=1, where=codes[:, here] == k) for k in range(entries)], axis=1
        ).astype(np.float64)
        if len(arrays["lut"]) == 1:  # of all rows
            quadratic, linear = quadratic.sum(axis=0)[None], linear.sum(axis=0)[None]
        scale_group = min(group, arrays["scales"].shape[1] - 1)
        scales = arrays["scales"][:, scale_group]
        now = points(arrays["lut"][:, group : group + 1], scales[:, None])[:, 0].astype(np.float64)
        diagonal = np.trace(quadratic, axis1=1, axis2=2) / entries
        ridge = _RIDGE * diagonal[:, None, None] * np.eye(entries) + 1e-300 * np.eye(entries)
        wanted = now + np.linalg.solve(quadratic + ridge, linear[..., None])[..., 0]

        def change(table: Array) -> Array:
            """Of the objective, by row, when the points become those of ``table``."""
            moved = table - now
            curved = np.einsum("rk,rkl,rl->r", moved, quadratic, moved)
            result: Array = curved - 2 * np.sum(moved * linear, axis=1)
            return result

        lut, found = self.fmt.stored_best(wanted, change)
        better = change(points(lut[:, None], found[:, None])[:, 0].astype(np.float64)) < 0
        arrays["lut"][better, group] = lut[better]
        if arrays["scales"].shape == arrays["lut"].shape[:2]:
            arrays["scales"][better, group] = found[better]
        self._sort(arrays, group, here)

    @staticmethod
    def _sort(arrays: Arrays, group: int, here: slice) -> None:
        """Entries ascending again, codes with them."""
        tables = arrays["lut"][:, group]
        order = np.argsort(tables, axis=1, kind="stable")
        arrays["lut"][:, group] = np.take_along_axis(tables, order, axis=1)
        rank = np.argsort(order, axis=1).astype(np.uint8)
        codes = arrays["codes"][:, here]
        rank = np.broadcast_to(rank, (len(codes), rank.shape[1]))
        arrays["codes"][:, here] = np.take_along_axis(rank, codes.astype(np.intp), axis=1)

    def _error(self, arrays: Arrays) -> Array:
        error: Array = self.weight - self.fmt.decode(arrays)
        return error
