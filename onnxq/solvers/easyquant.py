"""EasyQuant: no data; outliers set apart, and the range of each group fitted to all the others.

Outliers are the weights with |w| > n σ, σ the standard deviation of the whole weight. Scale and
zero point of each group are those with the least Σ (w − Q(w))² over the weights that are not
outliers. Tang et al., "EasyQuant: An Efficient Data-free Quantization Algorithm for LLMs"
(EMNLP 2023; arXiv:2403.02775). They follow the gradient of that sum in the scale; here
`onnxq.numerics.scale_search` finds scale and zero point together (``neuqi``), which ends where the
gradient is 0 and does not depend on a step size.

They keep the outliers, under 1 % of the weights, in full precision beside the codes. An integer
format has no place for them, so here they end on the clipped ends of the grid, which is only right
where it costs less than it gains. So a group takes its fitted grid where neither the sum over its
normal weights nor the sum over all of them is above that of the plain range, and keeps the plain
range elsewhere: both sums are never worse than those of ``minmax``. `split_outliers` is for formats
that can store outliers.
"""

from __future__ import annotations

import array_api_compat
import numpy as np

from onnxq.errors import FormatError
from onnxq.formats import Arrays, IntFormat
from onnxq.formats.base import check_weight
from onnxq.numerics.grid_costs import Array
from onnxq.solvers.grids import choose_grid, group_costs, round_on_grid
from onnxq.solvers.inputs import require_integers
from onnxq.solvers.statistics import Statistics

__all__ = ["easyquant", "split_outliers"]


def easyquant(
    weight: Array,
    fmt: IntFormat,
    statistics: Statistics | None = None,
    *,
    seed: int = 0,
    threads: int | None = None,
    sigmas: float = 3.0,
) -> Arrays:
    """Round to nearest on ranges fitted to the weights that are not outliers.

    Args:
        weight: ``[rows, columns]`` = ``[out, in]``, a float type; NumPy or torch.
        fmt: the format to store it in.
        statistics: not used, the method is data-free; every solver takes it.
        seed: not used, nothing is random; every solver takes it.
        threads: of the kernel; the result does not depend on it.
        sigmas: n: outliers are further than this many standard deviations from 0.

    Returns:
        The arrays of ``fmt.encode``.

    Raises:
        FormatError: the weight cannot be stored (see `IntFormat.encode`), or ``sigmas`` is not
            above 0.
    """
    del statistics, seed
    require_integers("easyquant", fmt)
    if isinstance(weight, np.ndarray):
        check_weight(weight)
    plain, plain_zeros = choose_grid(weight, fmt, threads=threads)
    # An outlier replaced by 0, which every grid holds exactly, has no part in any sum.
    normal, _ = split_outliers(weight, sigmas)
    fitted, fitted_zeros = choose_grid(normal, fmt, search="neuqi", threads=threads)
    xp = array_api_compat.array_namespace(plain)
    better = plain == plain
    for part in (normal, weight):
        after = group_costs(part, fmt, fitted, fitted_zeros, threads=threads)
        better = better & (after <= group_costs(part, fmt, plain, plain_zeros, threads=threads))
    scales, zeros = fmt.stored_scales(xp.where(better, fitted, plain)), None
    if plain_zeros is not None:
        zeros = xp.where(better, fitted_zeros, plain_zeros)
    return round_on_grid(weight, fmt, scales, zeros, threads=threads)


def split_outliers(weight: Array, sigmas: float) -> tuple[Array, Array]:
    """Cut a weight into normal weights and outliers, which add up to it.

    Args:
        weight: ``[rows, columns]``, a float type.
        sigmas: outliers have ``|w| > sigmas * σ``, σ the standard deviation of the whole weight.

    Returns:
        Two arrays of the shape and type of ``weight``, each 0 where the other is not.

    Raises:
        FormatError: ``sigmas`` is not above 0.
    """
    if not sigmas > 0:
        raise FormatError(f"sigmas is {sigmas}; outliers lie more than 0 standard deviations out.")
    xp = array_api_compat.array_namespace(weight)
    limit = sigmas * float(xp.std(xp.astype(weight, xp.float64)))
    outlying = xp.abs(weight) > limit
    nothing = xp.zeros_like(weight)
    return xp.where(outlying, nothing, weight), xp.where(outlying, weight, nothing)
