"""How much the model minds an error at each site: several measures, one interface.

==================  ==================================================================  ==========
measure             loss of a weight error E at a site                                  needs
==================  ==================================================================  ==========
``marginal``        that of ``fisher``, corrected by what each site adds to the loss    torch, data
                    when all are rounded (`onnxq.budget.marginals`)
``fisher``          ½ Σ_i f_i e_i M e_iᵀ, M and f from gradients of the output loss     torch, data
``hessian_trace``   ½ mean trace of the Hessian · ‖E‖² (HAWQ-V2)                        torch, data
``noise``           α · tr(E H Eᵀ) / tr(W H Wᵀ), α by noise in one site at a time       torch, data
``kl``              as ``noise``, with the site rounded to 3 bits for noise             torch, data
``h``               tr(E H Eᵀ) / tr(W H Wᵀ): the output error of the site               data
``weights``         ‖E‖² / ‖W‖²                                                         nothing
==================  ==================================================================  ==========

The first five are in the unit of the loss of the model (`onnxq.evaluate.output_loss`), to second
order, and add up over sites (the linearity theorem of HIGGS, Malinovskii et al., arXiv:2411.17525,
which measures α by noise); the last two only rank. HAWQ-V2: Dong et al., arXiv:1911.03852.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir

from onnxq.budget.cost import SiteCost
from onnxq.errors import (
    BudgetError,
    CalibrationError,
    MissingDependency,
    UnsupportedGraph,
    UsageError,
)
from onnxq.evaluate.output_loss import OutputLoss
from onnxq.graph.sites import Site
from onnxq.graph.weights import float32_bytes
from onnxq.runtime.machine import available_memory

__all__ = ["IN_UNITS", "MEASURES", "Measure", "site_costs"]

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int, int], None]
Measure = Literal["marginal", "fisher", "hessian_trace", "noise", "kl", "h", "weights"]

MEASURES: tuple[str, ...] = get_args(Measure)
IN_UNITS = frozenset({"marginal", "fisher", "hessian_trace", "noise", "kl"})
"""Measures in the unit of the loss of the model."""

_NOISE = 0.05
"""Of ``noise``: its size relative to the weight; losses are quadratic so far."""
_KL_FORMAT = "int3_g64"


def site_costs(
    measure: str,
    model: ir.Model,
    samples: Sequence[Mapping[str, Array]] | None,
    sites: Sequence[Site],
    loss: OutputLoss,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, SiteCost]:
    """The cost of an error at every site that the measure can look at.

    Args:
        measure: one of `MEASURES`; of ``marginal``, what is to be corrected.
        model: the float model; left as it is.
        samples: a few inputs; None only for ``weights``.
        sites: of ``model``.
        loss: what the model is judged by.
        seed: of what is drawn at random.
        progress: called with (what, done, total).

    Raises:
        UsageError: there is no such measure.
        CalibrationError: it needs samples.
        UnsupportedGraph: torch does not run the model; ``h`` does without.
        MissingDependency: torch is not installed.
    """
    if measure not in MEASURES:
        raise UsageError(
            f"There is no measure of sensitivity {measure!r}: choose {', '.join(MEASURES)}."
        )
    if measure == "weights":
        return {site.name: SiteCost(form="identity", relative=True) for site in sites}
    if not samples:
        raise CalibrationError(
            f"Sensitivity by {measure!r} looks at calibration data: give some (--data), or choose "
            "the measure 'weights', which needs none and tells less."
        )
    if measure == "h":
        return {site.name: SiteCost(form="hessian", relative=True) for site in sites}
    if importlib.util.find_spec("torch") is None:
        raise MissingDependency("torch", "torch", f"Sensitivity by {measure!r}")
    _check_memory(measure, model)
    by = _one_by_one if measure in ("noise", "kl") else _by_gradients
    try:
        return by(measure, model, samples, sites, loss, seed, progress)
    except UnsupportedGraph as error:
        error.add_note(f"(sensitivity by {measure!r} runs the model in torch; --measure h not)")
        raise


def _check_memory(measure: str, model: ir.Model) -> None:
    """Raise where torch could not hold the weights in float32."""
    copies = 3 if measure == "marginal" else 1
    needed = copies * float32_bytes(model)
    free = available_memory()
    if free is not None and needed > free:
        raise BudgetError(
            f"Sensitivity by {measure!r} holds all weights in memory, {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are available: use --measure h, which takes a layer at a time, "
            "or a larger machine."
        )


def _by_gradients(
    measure: str,
    model: ir.Model,
    samples: Sequence[Mapping[str, Array]],
    sites: Sequence[Site],
    loss: OutputLoss,
    seed: int,
    progress: Progress | None,
) -> dict[str, SiteCost]:
    from onnxq.learning.output_curvature import output_curvature

    by_trace = measure == "hessian_trace"
    found = output_curvature(model, samples, sites, loss, seed=seed, progress=progress)
    if by_trace:
        size = {site.name: int(np.prod(site.shape)) for site in sites}
        return {
            name: SiteCost(form="identity", factor=0.5 * one.trace / size[name])
            for name, one in found.items()
        }
    return {
        name: SiteCost(form="own", factor=0.5, rows=one.rows, matrix=one.matrix)
        for name, one in found.items()
    }


def _one_by_one(
    measure: str,
    model: ir.Model,
    samples: Sequence[Mapping[str, Array]],
    sites: Sequence[Site],
    loss: OutputLoss,
    seed: int,
    progress: Progress | None,
) -> dict[str, SiteCost]:
    from onnxq.formats import parse_format
    from onnxq.learning.single_site_loss import single_site_losses

    rng = np.random.default_rng(seed)
    fmt = parse_format(_KL_FORMAT)

    def changed(rows: Array) -> Array:
        if measure == "kl":
            rounded: Array = fmt.decode(fmt.encode(rows))
            return rounded
        size = np.sqrt(np.mean(np.square(rows), axis=1, keepdims=True))
        noisy: Array = rows + (_NOISE * size * rng.standard_normal(rows.shape)).astype(np.float32)
        return noisy

    found = single_site_losses(model, samples, sites, loss, changed, progress=progress)
    return {
        name: SiteCost(form="hessian", relative=True, factor=one.loss / max(one.error, 1e-30))
        for name, one in found.items()
    }
