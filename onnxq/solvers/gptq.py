"""GPTQ: columns are rounded in turn, and those that remain make up for each error.

Minimizes tr((W − Ŵ) H (W − Ŵ)ᵀ) greedily. Frantar et al., "GPTQ: Accurate Post-Training
Quantization for Generative Pre-trained Transformers" (arXiv:2210.17323), by the factor U D Uᵀ of H
instead of the Cholesky factor of its inverse, which gives the same codes (`onnxq.numerics.linalg`
has the algebra). With t_i what column i has become when its turn comes and η_i = t_i − ŵ_i,

    tr((W − Ŵ) (H + λI) (W − Ŵ)ᵀ) = Σ_i D_i ‖η_i‖²   exactly,

so D_i, not H_ii, is what a squared rounding error of column i costs, and scales are searched with
the weights D: on SmolLM2-135M at 3 and 4 bits in groups of 128 that lowers the objective by some
6 % against weights H_ii, and by 15 % against none. Where no code is clipped, |η_i| ≤ s_i/2 and the
sum is at most Σ D_i s_i²/4 for each row.
Run last column to first it is Babai's nearest-plane algorithm on the lattice of H (Chen et al.,
"The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm", arXiv:2507.18553).

Formats whose codes are points (tables, codebooks, trellises) are rounded the same way, some columns
at a time: LDLQ (`onnxq.solvers.ldlq`). They choose their scales and tables by themselves.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import array_api_compat
import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.formats import Arrays, Format, IntFormat, PerBlock, PerGroup, VectorFormat
from onnxq.formats.two_level import row_scales, scales_on_rows
from onnxq.numerics.column_rounding import columns_of
from onnxq.numerics.linalg import factor_hessian
from onnxq.solvers.column_order import Order, blocks_of_groups, column_order
from onnxq.solvers.grids import Search, choose_grid
from onnxq.solvers.inputs import checked_inputs, require_integers, to_numpy
from onnxq.solvers.ldlq import ldlq_points
from onnxq.solvers.shrinkage import enough_damping
from onnxq.solvers.statistics import Statistics

__all__ = ["GroupScales", "gptq"]

GroupScales = Literal["static", "updated"]
Array = npt.NDArray[Any]


def gptq(
    weight: Array,
    fmt: Format,
    statistics: Statistics | None = None,
    *,
    seed: int = 0,
    threads: int | None = None,
    damping: float = 0.01,
    order: Order = "activation",
    search: Search = "neuqi",
    group_scales: GroupScales = "updated",
    block: int = 128,
) -> Arrays:
    """Round with feedback through the Hessian.

    Args:
        weight: ``[rows, columns]`` = ``[out, in]``, a float type; NumPy, or torch on any device.
        fmt: the format to store it in.
        statistics: of the inputs of the layer; only the Hessian is used.
        seed: of what formats of points choose at random; not used for integers.
        threads: of the kernel; the result does not depend on it.
        damping: λ as a part of the mean diagonal of H; grows where H is still singular.
        order: of the columns, see `onnxq.solvers.column_order`. Codes stay in their places. With
            ``updated`` scales of groups, groups are ordered as wholes and columns inside them.
        search: how scales of integers are chosen, see `onnxq.numerics.scale_search`.
        group_scales: ``updated`` chooses the scale of a group when it is reached, from what its
            columns have become; ``static`` chooses all of them from the weight as it is, which
            leaves the order free. The same thing where a row has one scale.
        block: columns between two updates of all the others; only speed depends on it.

    Returns:
        The arrays of ``fmt.encode``.

    Raises:
        FormatError: no statistics, statistics of another layer, an option that does not exist, or
            a weight that cannot be stored (see `IntFormat.encode`).
    """
    if group_scales not in ("static", "updated"):
        raise FormatError(f"group_scales is {group_scales!r}; choose 'static' or 'updated'.")
    weight, hessian = checked_inputs("gptq", weight, statistics)
    damping = enough_damping(statistics, damping)
    if isinstance(fmt, VectorFormat):
        how: Any = {"damping": damping, "order": order, "threads": threads, "block": block}
        return ldlq_points(weight, fmt, hessian, seed=seed, **how)
    fmt = require_integers("gptq", fmt)
    xp = array_api_compat.array_namespace(weight, hessian)
    grouped = isinstance(fmt.granularity, PerGroup | PerBlock)
    updated = grouped and group_scales == "updated"
    size = fmt.group_size(weight.shape[1])
    power = to_numpy(xp.linalg.diagonal(hessian))
    places = column_order(power, order, size if updated else 1)
    index = xp.asarray(places, device=array_api_compat.device(weight))
    factor = factor_hessian(hessian, damping=damping, places=places, exact=False, threads=threads)
    back = xp.asarray(np.argsort(places), device=array_api_compat.device(weight))
    scales = _Scales(fmt, search, threads, weight)
    if not updated:
        scales.choose(weight, xp.take(factor.variances, back), slice(None))
    limits = fmt.lowest, fmt.highest
    columns = columns_of(xp.take(weight, index, axis=1), factor.upper, limits, threads=threads)
    groups = places // size
    for runs in blocks_of_groups(groups if updated else np.arange(len(groups)) // block, block):
        first, last = runs[0][0], runs[-1][1]
        columns.feed(0, first, first, last)
        for begin, end in runs:
            columns.feed(first, begin, begin, end)
            if updated:
                at = slice(groups[begin], groups[begin] + 1)
                scales.choose(columns.targets(begin, end), factor.variances[begin:end], at)
            columns.round(begin, end, *scales.of(groups[begin:end]))
    return {"codes": xp.take(columns.codes(), back, axis=1), **scales.arrays()}


class _Scales:
    """The scales and zero points of a weight, chosen group after group or all at once."""

    def __init__(self, fmt: IntFormat, search: Search, threads: int | None, weight: Array) -> None:
        self._fmt, self._search, self._threads = fmt, search, threads
        self._rows, columns = weight.shape
        self._xp = array_api_compat.array_namespace(weight)
        self._device = array_api_compat.device(weight)
        shape = fmt.granularity.scales_shape(self._rows, columns)
        self._scales = self._xp.ones(shape, dtype=self._xp.float32, device=self._device)
        self._zeros: Any = None
        if not fmt.symmetric:
            self._zeros = self._xp.zeros(shape, dtype=self._xp.uint8, device=self._device)
        self._weight = weight

    def choose(self, targets: Array, importance: Array, groups: slice) -> None:
        """Choose those of ``groups`` from the columns they span, ``[rows, columns of them]``."""
        scales, zeros = choose_grid(
            targets, self._fmt, search=self._search, importance=importance, threads=self._threads
        )
        if self._fmt.two_level and groups != slice(None):
            scales = scales_on_rows(scales, self._row_scales, self._fmt.largest_ratio)
        self._scales[:, groups] = scales
        if zeros is not None:
            self._zeros[:, groups] = zeros

    @functools.cached_property
    def _row_scales(self) -> Array:
        """What the scales of a row are multiples of, known before the first group is rounded."""
        scales, _ = choose_grid(self._weight, self._fmt, search=self._search, threads=self._threads)
        rows: Array = row_scales(scales, self._fmt.largest_ratio)
        return rows

    def of(self, groups: npt.NDArray[np.int64]) -> tuple[Array, Array | None, Array]:
        """Scales and zeros ``[rows, used]`` for columns of these groups, and which each takes."""
        used, which = np.unique(groups, return_inverse=True)
        at = self._xp.asarray(used, device=self._device)
        zeros = None if self._zeros is None else self._per_row(self._zeros, at)
        return self._per_row(self._scales, at), zeros, which.astype(np.int32)

    def arrays(self) -> Arrays:
        """Scales and zeros as the format stores them."""
        dtype = getattr(self._xp, self._fmt.scale_dtype)
        arrays = {"scales": self._xp.astype(self._scales, dtype)}
        if self._zeros is not None:
            arrays["zeros"] = self._zeros
        return arrays

    def _per_row(self, values: Array, groups: Array) -> Array:
        taken = self._xp.take(values, groups, axis=1)
        if isinstance(self._fmt.granularity, PerBlock):
            taken = self._xp.repeat(taken, self._fmt.granularity.rows, axis=0)[: self._rows]
        spread: Array = self._xp.broadcast_to(taken, (self._rows, taken.shape[1]))
        return spread
