"""Codes of tables by coordinate descent, and the best tables for given codes.

A row ŵ takes, in column j of group g, the point c_gk of its code k. With the residual
r = (w − ŵ) H all other codes fixed, the form (w − ŵ) H (w − ŵ)ᵀ is a parabola in ŵ_j with its least
value at ŵ_j + r_j / H_jj, so the best code is that of the point nearest to it (`descend_entries`).

With the codes fixed ŵ is linear in the points of a group: moved by δ they change the form by

    δ A δᵀ − 2 δ bᵀ,   A_kl = Σ_{i of k, j of l} H_ij,   b_k = Σ_{j of k} r_j,

which is least where A δ = b (`entry_sums` gives A). Kim et al., "GuidedQuant" (arXiv:2505.07004),
section 4: layer-wise non-uniform quantization alternates the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.numerics import _native
from onnxq.numerics.threads import default_threads

__all__ = ["descend_entries", "entry_sums"]

Array = npt.NDArray[Any]


def descend_entries(
    hessian: Array,
    points: Array,
    codes: npt.NDArray[np.uint8],
    residual: Array,
    *,
    group: int,
    sweeps: int,
    threads: int | None = None,
) -> tuple[npt.NDArray[np.uint8], int]:
    """Set each code to the best one given all others, until none can improve.

    Args:
        hessian: H, ``[columns, columns]`` float32, symmetric.
        points: ``[rows or 1, groups or 1, entries]`` float32, what codes stand for.
        codes: ``[rows, columns]``, where to begin.
        residual: (W − Ŵ) H of these codes, ``[rows, columns]`` float32.
        group: columns that share the points.
        sweeps: over all columns, at most.
        threads: of the kernel; the result does not depend on it.

    Returns:
        The codes, and how many steps were taken.
    """
    codes = codes.copy()
    steps = _native.descend_entries(
        np.ascontiguousarray(hessian, np.float32),
        np.ascontiguousarray(points, np.float32),
        group,
        sweeps,
        codes,
        np.array(residual, np.float32, order="C"),
        threads or default_threads(),
    )
    return codes, steps


def entry_sums(
    hessian: Array,
    codes: npt.NDArray[np.uint8],
    entries: int,
    columns: slice,
    *,
    threads: int | None = None,
) -> npt.NDArray[np.float64]:
    """A of every row, ``[rows, entries, entries]``, for the columns of one group.

    Args:
        hessian: H, as in `descend_entries`.
        codes: ``[rows, columns]``.
        entries: of a table.
        columns: of the group, first to last.
        threads: of the kernel; the result does not depend on it.
    """
    sums = np.empty((len(codes), entries, entries))
    _native.entry_sums(
        np.ascontiguousarray(hessian, np.float32),
        np.ascontiguousarray(codes),
        columns.start,
        columns.stop - columns.start,
        sums,
        threads or default_threads(),
    )
    return sums
