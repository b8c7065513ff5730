"""What every site may be stored in, what that takes, and what it costs.

The loss of a site in a format is that of the codes that the solver of the recipe chooses, on the
statistics of the float model, under the cost that sensitivity gave the site (`onnxq.budget.cost`).
Rows are rounded independently of one another but for what few formats share among them, so of large
weights a few rows tell what all of them will do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.budget.cost import SiteCost
from onnxq.calibration.course import unreachable_sites
from onnxq.calibration.samples import Samples
from onnxq.calibration.site_statistics import walk_sites
from onnxq.calibration.token_weights import parse_token_weights
from onnxq.errors import FormatError
from onnxq.formats import Format, IntFormat, parse_format
from onnxq.graph.orientation import to_rows
from onnxq.graph.sites import Site
from onnxq.graph.weights import weight_tensor
from onnxq.passes.learned_rounding import find_solver
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.weight_bytes import stored_bytes
from onnxq.passes.weight_forms import site_refusal
from onnxq.passes.weight_layout import weight_of
from onnxq.solvers.registry import solver
from onnxq.solvers.statistics import Statistics

__all__ = ["FLOAT", "Option", "SiteMenu", "measure_losses", "options_of", "rounded_weights"]

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int, int], None]

FLOAT = "float"
"""In a menu: the weight as it is."""

_OF_TABLES = ("beam_search", "lnq")
"""Solvers that take no integers; those that sensitivity is measured in are by GPTQ then."""
_LEAST_ROWS = 32
_PART = 32
_RUN = 16
"""Rows that lie side by side in a sample of rows: trellises round so many together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One format for one site.

    Attributes:
        format: its name, or ``float``.
        nbytes: of the weight in the file, everything counted.
        loss: what it adds to the loss of the model.
        latency_us: of the operator on this machine; None when not measured.
    """

    format: str
    nbytes: int
    loss: float = 0.0
    latency_us: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteMenu:
    """The options of one site.

    Attributes:
        site: its name.
        weights: numbers in its weight.
        options: at least one.
        counted: whether its bits count in a budget of bits per weight.
    """

    site: str
    weights: int
    options: tuple[Option, ...]
    counted: bool = True

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the formats of the options."""
        return tuple(option.format for option in self.options)


def options_of(site: Site, formats: Sequence[str], write: str) -> tuple[Option, ...] | str:
    """The options that can be stored at a site, losses and latencies left out.

    Args:
        site: any site.
        formats: names, or ``float``.
        write: of `quantize_weights`.

    Returns:
        The options, or why there is none, as a clause.
    """
    found, reasons = [], []
    for name in formats:
        if name == FLOAT:
            if site.weight is not None and site.already is None:
                found.append(Option(format=FLOAT, nbytes=int(weight_tensor(site.weight).nbytes)))
            continue
        fmt = parse_format(name)
        reason = site_refusal(site, fmt, write)
        if reason is None:
            found.append(Option(format=str(fmt), nbytes=stored_bytes(site, fmt, write)))
        else:
            reasons.append(reason)
    if not found or all(option.format == FLOAT for option in found):
        return reasons[0] if reasons else "the policy leaves it in float"
    return tuple(found)


def measure_losses(
    model: ir.Model,
    samples: Iterable[Mapping[str, Array]] | None,
    formats: Mapping[str, Sequence[str]],
    sites: Sequence[Site],
    costs: Mapping[str, SiteCost],
    step: QuantizeWeights,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """The loss of every format of every site.

    Args:
        model: the float model as the quantizing pass will find it; left as it is.
        samples: calibration inputs; None where neither solver nor costs need any.
        formats: by name of the site.
        sites: those of ``model`` that are looked at.
        costs: by name of the site.
        step: the pass that will quantize: its solver and options are used.
        progress: called with (what, sites done, sites).

    Returns:
        By name of the site, by name of the format.
    """
    losses: dict[str, dict[str, float]] = {}
    rounding = _Rounding(step)

    def solve(site: Site, statistics: tuple[Statistics, ...] | None) -> None:
        if progress is not None:
            progress("menu of formats", len(losses), len(sites))
        rows = to_rows(site, weight_tensor(weight_of(site)).numpy())
        known = rounding.losses(rows, statistics, costs[site.name], formats[site.name])
        losses[site.name] = {FLOAT: 0.0, **known}

    needs_data = rounding.needs_data or any(c.form == "hessian" for c in costs.values())
    _visit(model, samples if needs_data else None, sites, step, solve)
    return losses


def rounded_weights(
    model: ir.Model,
    samples: Iterable[Mapping[str, Array]] | None,
    mix: Mapping[str, str],
    sites: Sequence[Site],
    step: QuantizeWeights,
    progress: Progress | None = None,
) -> dict[str, Array]:
    """The weights of a mix as they are read back, each solved on statistics of the float model.

    Args:
        model: the float model as the quantizing pass will find it; left as it is.
        samples: calibration inputs; None where the solver needs none.
        mix: a format by name of the site.
        sites: those of ``model`` that are rounded; one in float is left out.
        step: the pass that will quantize: its solver and options are used.
        progress: called with (what, sites done, sites).

    Returns:
        By name of the site, float32 ``[rows, columns]``.
    """
    rounded: dict[str, Array] = {}
    rounding = _Rounding(step)
    chosen = [site for site in sites if mix[site.name] != FLOAT]

    def solve(site: Site, statistics: tuple[Statistics, ...] | None) -> None:
        if progress is not None:
            progress("weights of one format", len(rounded), len(chosen))
        rows = to_rows(site, weight_tensor(weight_of(site)).numpy())
        rounded[site.name] = rounding.rounded(rows, statistics, mix[site.name])

    _visit(model, samples if rounding.needs_data else None, chosen, step, solve)
    return rounded


def _visit(
    model: ir.Model,
    samples: Iterable[Mapping[str, Array]] | None,
    sites: Sequence[Site],
    step: QuantizeWeights,
    solve: Callable[[Site, tuple[Statistics, ...] | None], None],
) -> None:
    """Every site with its statistics; without samples, or where none reach it, with None."""
    blind = {site.name for site in sites}
    if samples is not None:
        blind = set(unreachable_sites(model, sites))
        walk_sites(
            model,
            Samples.of(samples, limit=step.samples),
            [site for site in sites if site.name not in blind],
            solve,
            flow="one_shot",
            token_weights=parse_token_weights(step.token_weights),
        )
    for site in sites:
        if site.name in blind:
            solve(site, None)


class _Rounding:
    """Rounds a part of the rows as the pass would."""

    def __init__(self, step: QuantizeWeights) -> None:
        chosen = find_solver(step.solver)
        self._step = step
        # What learns through whole blocks cannot be asked for one site: GPTQ stands for it.
        self._name = "gptq" if "block" in chosen.needs or "drift" in chosen.needs else step.solver
        self._options = dict(step.solver_options) if self._name == step.solver else {}

    @property
    def needs_data(self) -> bool:
        return bool(find_solver(self._name).needs)

    def losses(
        self,
        rows: Array,
        statistics: tuple[Statistics, ...] | None,
        cost: SiteCost,
        formats: Sequence[str],
    ) -> dict[str, float]:
        """By format; those that are ``float`` are left out."""
        known: Sequence[Statistics | None] = statistics or (None,)
        at = np.arange(len(rows)) if len(known) > 1 else _some_rows(len(rows))
        hessians = None if statistics is None else [one.hessian for one in statistics]
        if hessians is None and cost.form == "hessian":
            cost = dataclasses.replace(cost, form="identity")
        loss_of = cost.of_rows(rows, at, hessians)
        parts = np.split(rows[at], len(known))
        found = {}
        for name in formats:
            if name == FLOAT:
                continue
            fmt = parse_format(name)
            errors = [p - self._decoded(p, fmt, one) for p, one in zip(parts, known, strict=True)]
            found[name] = loss_of(np.concatenate(errors))
            if not np.isfinite(found[name]):
                raise FormatError(f"the loss of {name} is not finite: look for NaN in the weight")
        return found

    def rounded(self, rows: Array, statistics: tuple[Statistics, ...] | None, name: str) -> Array:
        """All rows as a format stores them."""
        known: Sequence[Statistics | None] = statistics or (None,)
        fmt, parts = parse_format(name), np.split(rows, len(known))
        return np.concatenate(
            [self._decoded(part, fmt, one) for part, one in zip(parts, known, strict=True)]
        )

    def _decoded(self, part: Array, fmt: Format, known: Statistics | None) -> Array:
        name, options = self._name, self._options
        if isinstance(fmt, IntFormat) and name in _OF_TABLES:
            name, options = "gptq", {}
        if known is None:
            name, options = "nearest", {}
        arrays = solver(name).solve(part, fmt, known, seed=self._step.seed, **options)
        decoded: Array = fmt.decode(arrays)
        return decoded


def _some_rows(count: int) -> Array:
    """A 32nd of the rows, at least 32, in runs of 16 spread evenly."""
    wanted = max(_LEAST_ROWS, count // _PART)
    runs = -(-wanted // _RUN)
    if runs * _RUN * 2 > count:
        return np.arange(count)
    starts = np.linspace(0, count - _RUN, runs).astype(np.int64)
    return np.unique((starts[:, None] + np.arange(_RUN)).ravel())
