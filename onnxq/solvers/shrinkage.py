"""How far a second moment of few tokens is to be trusted.

H = E[x xᵀ] of n tokens has a rank of n at most: with fewer tokens than columns, errors in whole
directions look as if they cost nothing, and a solver puts its errors there. Seen with 37 tokens for
384 columns (the decoder of Whisper): weights of 3 bits that fit those tokens and no others. The
mean of the diagonal is known far better than the rest, so H is shrunk towards it,

    (1 − ρ) H + ρ (tr H / p) I,
    ρ = ((1 − 2/p) tr H² + (tr H)²) / ((n + 1 − 2/p) (tr H² − (tr H)² / p)),  at most 1,

which for normal x comes nearest to the true moment, as far as n alone tells: oracle approximating
shrinkage (Chen, Wiesel, Eldar and Hero, arXiv:0907.4698, theorem 3). That is damping with
λ = ρ / (1 − ρ) of the mean diagonal: about (1 + r) / n, r the columns that H mostly lies in.
"""

from __future__ import annotations

import array_api_compat

from onnxq.solvers.statistics import Statistics

__all__ = ["enough_damping"]

_MOST = 0.9
"""Of ρ: what n tokens show is never left aside altogether."""


def enough_damping(statistics: Statistics | None, damping: float) -> float:
    """The damping that a solver was given, or that few tokens ask for, whichever is more.

    Args:
        statistics: of the inputs of the layer. With a total weight of 1 or less the number of
            tokens is not known, and the damping stays.
        damping: λ as a part of the mean diagonal of H. 0 stays 0: it asks for H as it is.
    """
    if statistics is None or statistics.weight <= 1 or damping == 0:
        return damping
    hessian = statistics.hessian
    xp = array_api_compat.array_namespace(hessian)
    columns = int(hessian.shape[0])
    trace = float(xp.sum(xp.astype(xp.linalg.diagonal(hessian), xp.float64)))
    squares = float(xp.linalg.matrix_norm(hessian)) ** 2
    spread = squares - trace**2 / columns
    if not spread > 0:
        return damping
    less = 1 - 2 / columns
    part = min(_MOST, (less * squares + trace**2) / ((statistics.weight + less) * spread))
    return max(damping, part / (1 - part))
