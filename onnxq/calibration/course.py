"""The way of a walk through a model, known before anything is run: its segments, and why not all.

Only shapes are looked at, so the way through a model larger than memory takes no time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

from onnxq.calibration.readings import reading_of
from onnxq.calibration.row_weights import RowWeights
from onnxq.calibration.segments import Cut, Segment, Visit, cut_segments
from onnxq.calibration.token_weights import TokenWeights
from onnxq.calibration.wiring import Wiring, depends_on_samples
from onnxq.errors import CalibrationError
from onnxq.graph.check import name_nodes
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.stage import clone_model
from onnxq.graph.versions import fit_runtime

__all__ = ["Course", "course_of", "unreachable_sites"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """Where a walk goes.

    Attributes:
        model: the running copy of the model.
        wiring: of what has to run.
        segments: in execution order; none when no site can be visited.
        rows: the weights of tokens.
        unreachable: by name of a site that is not visited, a clause that says why.
        notes: clauses on cuts that were made otherwise than asked.
    """

    model: ir.Model
    wiring: Wiring
    segments: Sequence[Segment]
    rows: RowWeights
    unreachable: dict[str, str]
    notes: tuple[str, ...]


def course_of(
    model: ir.Model, sites: Sequence[Site], *, cut: Cut, token_weights: TokenWeights
) -> Course:
    """Find the way of a walk; see `onnxq.calibration.site_statistics.walk_sites`."""
    copy = clone_model(model)
    name_nodes(copy)
    fit_runtime(copy, convert=True)
    unreachable = unreachable_sites(model, sites)
    visits = _visits(copy, [site for site in sites if site.name not in unreachable])
    rows = RowWeights(copy, token_weights)
    wiring = Wiring(
        copy.graph,
        [*(visit.input for visit in visits), *rows.attention_values],
        [visit.copy.node for visit in visits],
    )
    segments, notes = cut_segments(copy, wiring, visits, cut)
    return Course(
        model=copy,
        wiring=wiring,
        segments=segments if visits else (),
        rows=rows,
        unreachable=unreachable,
        notes=notes,
    )


def unreachable_sites(model: ir.Model, sites: Iterable[Site]) -> dict[str, str]:
    """By name of each site that has no statistics, a clause that says why."""
    live = depends_on_samples(model.graph)
    reasons = ((site.name, _why_unreachable(site, live)) for site in sites)
    return {name: reason for name, reason in reasons if reason is not None}


def _why_unreachable(site: Site, live: Collection[ir.Value]) -> str | None:
    if site.already is not None:
        return f"it is already quantized ({site.already})"
    if site.refusal is not None:
        return site.refusal
    if site.is_embedding:
        return "it looks up rows of its weight, so there is no activation to have statistics of"
    if site.path:
        return (
            f"it is inside {site.path!r}, and what is computed in the body of an operator or "
            "function cannot be observed: inline functions first"
        )
    if site.input is None or site.input not in live:
        return "what it multiplies does not depend on the samples: fold constants first"
    reading = reading_of(site)
    return reading if isinstance(reading, str) else None


def _visits(copy: ir.Model, sites: Sequence[Site]) -> list[Visit]:
    """The sites of the caller together with those of the copy that is run."""
    by_output = {site.output.name: site for site in find_sites(copy) if not site.path}
    visits = []
    for site in sites:
        twin = by_output.get(site.output.name)
        if twin is None or twin.input is None:
            raise CalibrationError(
                f"Site {site.name!r} is not a site of this model: find the sites of the very "
                "model that is calibrated."
            )
        reading = reading_of(twin)
        if not isinstance(reading, str):
            visits.append(Visit(site=site, copy=twin, input=twin.input, reading=reading))
    return visits
