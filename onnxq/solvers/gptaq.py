"""GPTAQ: GPTQ towards the outputs of the float model, not those of the weight on quantized inputs.

Minimizes ‖Ŵ x − W x̃‖² over the tokens, x̃ the inputs in the float model and x those in the quantized
one: asymmetric calibration, Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for
Asymmetric Calibration" (arXiv:2504.02692), also called GPTQv2.

The paper works column by column. When column i is reached, its own drift enters the objective as a
residual w_i (x̃_i − x_i), and the columns that remain are moved to take it up; over all columns that
is a second correction W · P with P = ((ΔX Xᵀ L) ⊙ M) Lᵀ, L Lᵀ = H⁻¹ and M strictly triangular.
Here the square is completed once (`onnxq.solvers.statistics`): with D = E[(x̃ − x) xᵀ] the same
objective is, up to a constant, that of GPTQ with the target W* = W (I + D H⁻¹): the correction of
the paper without the mask, D L Lᵀ. The mask keeps the drift of a column from moving that column
and those before it, so the paper aims at a causal part of W*, and its codes depend on the order in
one more way. W* is the least of the objective over all real Ŵ whatever the order, and rounding it
keeps the bound Σ D_i s_i²/4 on what is added to that least value.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from onnxq.formats import Arrays, Format
from onnxq.solvers.column_order import Order
from onnxq.solvers.gptq import GroupScales, gptq
from onnxq.solvers.grids import Search
from onnxq.solvers.inputs import checked_inputs
from onnxq.solvers.objective import moved_target
from onnxq.solvers.shrinkage import enough_damping
from onnxq.solvers.statistics import Statistics

__all__ = ["gptaq"]

Array = npt.NDArray[Any]


def gptaq(
    weight: Array,
    fmt: Format,
    statistics: Statistics | None = None,
    *,
    seed: int = 0,
    threads: int | None = None,
    strength: float = 0.25,
    damping: float = 0.01,
    order: Order = "activation",
    search: Search = "neuqi",
    group_scales: GroupScales = "updated",
    block: int = 128,
) -> Arrays:
    """Round with feedback towards the outputs of the float model.

    Args:
        weight: ``[rows, columns]`` = ``[out, in]``, a float type; NumPy, or torch on any device.
        fmt: the format to store it in.
        statistics: with the drift of the inputs.
        seed: not used, nothing is random; every solver takes it.
        threads: of the kernel; the result does not depend on it.
        strength: how far the target moves, see `moved_target`; 0 is `gptq`. The whole move fits the
            noise of D: on text not seen, 1 lost to 0 in 3 bits and 0.25 won.
        damping: see `gptq`; the target is moved with the same λ.
        order: see `gptq`.
        search: see `gptq`.
        group_scales: see `gptq`.
        block: see `gptq`.

    Returns:
        The arrays of ``fmt.encode``.

    Raises:
        FormatError: as for `gptq`, or statistics without drift.
    """
    weight, _ = checked_inputs("gptaq", weight, statistics)
    damping = enough_damping(statistics, damping)
    target = weight
    if statistics is not None:
        target = moved_target(weight, statistics, strength=strength, damping=damping)
    return gptq(
        target,
        fmt,
        statistics,
        seed=seed,
        threads=threads,
        damping=damping,
        order=order,
        search=search,
        group_scales=group_scales,
        block=block,
    )
