"""What an error of a weight costs: a quadratic form for every site, whatever measured it.

For a weight W ``[rows, columns]`` stored as Ŵ, with E = W − Ŵ and rows e_i,

    loss(E) = factor · Σ_i r_i · e_i M e_iᵀ  [ / Σ_i r_i · w_i M w_iᵀ  where relative ]

with M the identity, the Hessian H = E[x xᵀ] of what the site reads, or a matrix of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

__all__ = ["SiteCost"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteCost:
    """The quadratic form of one site.

    Attributes:
        form: which matrix M is.
        factor: of the whole.
        rows: r, ``[rows]``; all 1 when None.
        matrix: M for ``own``, ``[groups, columns, columns]``.
        relative: divide by the form of the weight itself.
    """

    form: Literal["identity", "hessian", "own"]
    factor: float = 1.0
    rows: Array | None = None
    matrix: Array | None = None
    relative: bool = False

    def of_rows(
        self, weight: Array, at: Array, hessians: Sequence[Array] | None
    ) -> Callable[[Array], float]:
        """The loss of errors that are known for some of the rows, as a function of these.

        The rest is taken to err as these do, each row in proportion to its own size: as
        Σ_i r_i ‖w_i‖² of all rows is to that of the rows known. A solver leaves rows with errors of
        one shape, H's, whose size is that of the row; w_i M w_iᵀ depends on where the row lies in
        M as well, and would be off by a factor of two for queries, few of which matter.

        Args:
            weight: W, ``[rows, columns]``.
            at: indices of the rows known, ascending; all of them for a site of several groups.
            hessians: H of each group, for ``hessian``.

        Returns:
            A function of E of the rows ``at``.
        """
        scale = self.factor
        if len(at) < len(weight):
            counted = np.square(weight, dtype=np.float64).sum(axis=1)
            counted = counted if self.rows is None else counted * self.rows
            known = float(counted[at].sum())
            scale *= float(counted.sum()) / known if known > 0 else 0.0
        if self.relative:
            whole = self._form(weight, np.arange(len(weight)), hessians)
            scale = scale / whole if whole > 0 else 0.0
        return lambda error: scale * self._form(error, at, hessians)

    def _form(self, rows: Array, at: Array, hessians: Sequence[Array] | None) -> float:
        matrices = self._matrices(hessians)
        split = rows.reshape(len(matrices), -1, rows.shape[1])
        squares = np.concatenate(
            [
                np.sum((part if m is None else part @ m) * part, axis=1, dtype=np.float64)
                for part, m in zip(split, matrices, strict=True)
            ]
        )
        return float(squares.sum() if self.rows is None else squares @ self.rows[at])

    def _matrices(self, hessians: Sequence[Array] | None) -> Sequence[Array | None]:
        if self.form == "identity":
            return (None,)
        found = hessians if self.form == "hessian" else self.matrix
        if found is None:
            raise ValueError(f"a cost of the form {self.form!r} was given no matrix")
        return [np.asarray(matrix, np.float32) for matrix in found]
