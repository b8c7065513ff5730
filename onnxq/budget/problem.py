"""What there is to choose from in one model: sites, menus, losses, latencies, sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.budget.latency_table import site_latencies
from onnxq.budget.measuring import Measuring
from onnxq.budget.menu import FLOAT, SiteMenu, options_of
from onnxq.budget.plan import Problem
from onnxq.budget.policy import Policy, matched, together
from onnxq.budget.request import Request
from onnxq.budget.sensitivity import IN_UNITS
from onnxq.errors import BudgetError, CalibrationError, RecipeError
from onnxq.evaluate.output_loss import OutputLoss, find_output_loss
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.weights import walk_weights, weight_tensor
from onnxq.passes.base import Progress, Samples
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.site_patterns import is_named, name_roles
from onnxq.passes.weight_bytes import stored_bytes
from onnxq.passes.weight_forms import site_refusal

__all__ = ["PlannedModel", "planned"]

_FUNCTION_BYTES, _SITE_BYTES, _PAGE = 12_000, 500, 4096
"""A first guess at what a function of an operator and the names of a site take in a file, and how
large weights are aligned; what is written corrects it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """One model with its choices.

    Attributes:
        problem: the menus, with losses and latencies.
        step: the pass that will quantize, roles of sites resolved.
        loss: what the model is judged by.
    """

    problem: Problem
    step: QuantizeWeights
    loss: OutputLoss


def planned(
    model: ir.Model,
    step: QuantizeWeights,
    request: Request,
    policy: Policy,
    *,
    samples: Samples | None,
    measure: str,
    progress: Progress,
) -> PlannedModel:
    """Find the sites and their menus, and measure what the budget asks about.

    Args:
        model: as the quantizing pass will find it.
        step: that pass.
        request: the budget.
        policy: which sites may take which formats.
        samples: calibration inputs.
        measure: of sensitivity.
        progress: called as work proceeds.

    Raises:
        BudgetError: no site has a choice.
        CalibrationError: the solver, the measure or a budget of latency needs samples.
        RecipeError: a loss is asked of a measure that only ranks.
    """
    named = name_roles(step, model)
    assert isinstance(named, QuantizeWeights)
    loss = find_output_loss(model)
    if request.max_loss is not None and measure not in IN_UNITS:
        raise RecipeError(
            f"--max-loss needs a measure in the unit of the loss ({', '.join(sorted(IN_UNITS))}), "
            f"and {measure!r} only ranks sites."
        )
    sites, menus = _menus(model, named, policy)
    choosing = [site for site in sites if len(menus[site.name].options) > 1]
    how = Measuring(model, named, loss, samples, progress)
    menus = how.with_losses(choosing, menus, measure)
    fixed_ms = float_ms = None
    if request.latency_ms is not None:
        menus, fixed_ms, float_ms = _with_latencies(model, named, sites, menus, samples, progress)
    sure = _other_bytes(model, named, sites)
    problem = Problem(
        menus=tuple(menus[site.name] for site in sites),
        groups=tuple(tuple(group) for group in together(policy, model, sites)),
        shared=_shared(sites),
        fixed_bytes=sure + _guessed_bytes(model, sites, sure),
        sure_bytes=sure,
        fixed_ms=fixed_ms,
        float_ms=float_ms,
        loss_name=loss.unit if measure in IN_UNITS else f"{measure}: relative, for ranking only",
        measure=measure,
    )
    if measure == "marginal":
        problem = how.corrected(choosing, problem)
    return PlannedModel(problem=problem, step=named, loss=loss)


def _menus(
    model: ir.Model, step: QuantizeWeights, policy: Policy
) -> tuple[list[Site], dict[str, SiteMenu]]:
    """Sites with at least one option; what the recipe excludes or overrides is left to it."""
    fixed = (*step.exclude, *step.overrides)
    free = [s for s in find_sites(model) if not s.is_embedding and not is_named(s.name, fixed)]
    rows = matched(policy, model, free)
    sites, menus, reasons = [], {}, []
    for site in free:
        if site.name not in rows:
            continue
        options = options_of(site, rows[site.name].formats, step.write)
        if isinstance(options, str):
            reasons.append(f"{site.name}: {options}")
            continue
        sites.append(site)
        menus[site.name] = SiteMenu(
            site=site.name,
            weights=int(np.prod(site.shape)),
            options=options,
            counted=rows[site.name].counted,
        )
    if not any(len(menu.options) > 1 for menu in menus.values()):
        why = f" ({reasons[0]})" if reasons else ""
        raise BudgetError(
            f"No site of the model has a choice of formats under this policy{why}: allow others "
            "with --menu or --policy."
        )
    return sites, menus


def _shared(sites: Sequence[Site]) -> frozenset[str]:
    """Sites whose weight an earlier site reads too."""
    seen: set[int] = set()
    shared = []
    for site in sites:
        if id(site.weight) in seen:
            shared.append(site.name)
        seen.add(id(site.weight))
    return frozenset(shared)


def _with_latencies(
    model: ir.Model,
    step: QuantizeWeights,
    sites: Sequence[Site],
    menus: Mapping[str, SiteMenu],
    samples: Samples | None,
    progress: Progress,
) -> tuple[dict[str, SiteMenu], float, float]:
    """The menus with latencies; milliseconds of the rest of a run, and of a float run."""
    if samples is None:
        raise CalibrationError(
            "A budget of latency is measured on the first sample, and there is none: give inputs "
            "(--data) of the size that will be run."
        )
    sample = next(iter(samples))
    plain = [site for site in sites if not site.path]
    times, whole = site_latencies(model, sample, plain, menus, step, progress=progress)
    rest = max(0.0, whole - sum(one[FLOAT] for one in times.values()) / 1e3)
    timed = {
        name: dataclasses.replace(
            menu,
            options=tuple(
                dataclasses.replace(option, latency_us=times.get(name, {}).get(option.format, 0.0))
                for option in menu.options
            ),
        )
        for name, menu in menus.items()
    }
    return timed, rest, whole


def _other_bytes(model: ir.Model, step: QuantizeWeights, sites: Sequence[Site]) -> int:
    """Bytes of all weights but those of these sites, as the pass will store them."""
    chosen = {id(site.weight) for site in sites}
    others: dict[int, int] = {}
    for site in find_sites(model):
        fmt = step.format_of(site)
        if site.weight is None or id(site.weight) in chosen or fmt is None:
            continue
        if site_refusal(site, fmt, step.write) is None:
            others[id(site.weight)] = stored_bytes(site, fmt, step.write)
    weights = [value for _, value in walk_weights(model) if id(value) not in chosen]
    return sum(others.get(id(v), int(weight_tensor(v).nbytes)) for v in weights)


def _guessed_bytes(model: ir.Model, sites: Sequence[Site], weights: int) -> int:
    """A guess at the rest of the files: nodes, names, functions, alignment."""
    nodes: int = sum(ir.serde.serialize_node(node).ByteSize() for node in model.graph)
    padding = _PAGE // 2 * len(sites) if weights > _PAGE * _PAGE else 0
    return nodes + _FUNCTION_BYTES + _SITE_BYTES * len(sites) + padding
