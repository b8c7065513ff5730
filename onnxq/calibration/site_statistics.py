"""Second-order statistics of every site, gathered segment by segment in execution order.

The network is cut into segments (`onnxq.calibration.segments`). For each of them: the statistics of
its sites are summed, from the stored activations where a site reads a value that is alive at the
cut, else from a run of the segment with its own weights still in float; every site is solved; then
the segment runs once per sample, on the new weights, to give what the next one reads.

=============  ======================================  =================================
flow           a site's statistics are of              runs of a segment
=============  ======================================  =================================
sequential     the network quantized up to here        one, quantized
one_shot       the float network                       one, float
asymmetric     both, and the drift from one to other   two, as far as they differ
=============  ======================================  =================================

Sequential statistics are those of GPTQ (Frantar et al., arXiv:2210.17323, section 4), asymmetric
ones those of GPTAQ (Li et al., arXiv:2504.02692).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.calibration.activations import ActivationStore
from onnxq.calibration.checks import checked_samples
from onnxq.calibration.collect import Progress
from onnxq.calibration.course import course_of
from onnxq.calibration.sample_pool import SamplePool
from onnxq.calibration.samples import Samples
from onnxq.calibration.segment_model import NewWeight
from onnxq.calibration.segment_walk import Flow, KnownSites, SegmentWalk, SolveSites
from onnxq.calibration.segments import Cut
from onnxq.calibration.token_weights import TokenWeights
from onnxq.errors import CalibrationError
from onnxq.graph.sites import Site
from onnxq.runtime.memory_settings import MemorySettings
from onnxq.solvers.statistics import Statistics

__all__ = ["SiteWalk", "SolveSite", "walk_sites"]

SolveSite = Callable[[Site, tuple[Statistics, ...]], np.ndarray[Any, Any] | NewWeight | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteWalk:
    """What happened on a walk.

    Attributes:
        segments: how many segments were run.
        samples: how many samples.
        unreachable: by name of a site that was not visited, a clause that says why.
        notes: clauses on what was done otherwise than asked.
    """

    segments: int
    samples: int
    unreachable: dict[str, str]
    notes: tuple[str, ...]


def walk_sites(
    model: ir.Model,
    samples: Samples | Iterable[Any],
    sites: Sequence[Site],
    solve: SolveSite | None,
    *,
    together: SolveSites | None = None,
    known: KnownSites | None = None,
    flow: Flow = "sequential",
    cut: Cut = "sites",
    token_weights: TokenWeights | None = None,
    need: Collection[str] = ("hessian",),
    memory: MemorySettings | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> SiteWalk:
    """Gather the statistics of each site and hand them to ``solve``, in execution order.

    Args:
        model: left as it is; its weights are read when their segment runs.
        samples: inputs by name, and the extra array that ``token_weights`` names.
        sites: sites of ``model``, in any order.
        solve: is given a site and its statistics, one for each convolution group (for other sites
            there is one). Sites that read the same activation in the same way are given the same
            object. Returns the new weight as `onnxq.graph.orientation.to_rows` lays it out,
            float32 [rows, columns], which the rest of the network will run on, or a `NewWeight`
            when its bias moves too; or None to go on with the float weight.
        together: in place of ``solve``: is given the sites whose statistics are there at once,
            which do not depend on each other.
        known: of all sites, segment by segment, those whose weight is known without statistics,
            from an earlier walk: ``together`` gets them with none. What it gives must be what it
            gave then; the other sites see the same, to the last bit, as if none had been known.
        flow: which network the activations are of; see the table above. In ``one_shot`` what
            ``solve`` returns is not used.
        cut: where to cut. ``sites``: before each site whose input is not known yet. ``blocks``:
            before each layer, so that within a layer all sites are solved on the float weights
            of that layer, as GPTQ's reference code does. ``whole``: nowhere; all statistics are
            those of the float network. Or names of values to cut at.
        token_weights: how much each token counts; None counts all the same. Padding never counts.
        need: besides ``hessian``: ``mean`` (E[x], and E[x̃] in the asymmetric flow) and ``drift``
            (E[(x̃ − x) xᵀ]; asymmetric flow only).
        memory: what is kept in memory and what on disk; the statistics do not depend on it.
        threads: run samples and multiply rows out, all of them together; None takes the cores
            there are. What is found does not depend on it.
        progress: called with (name of the segment's first site, segments done, segments).

    Raises:
        CalibrationError: samples that do not fit, an activation with NaN, an unknown cut, or a
            wrong ``need``; the message names the value and the sample.
        UnsupportedGraph: the runtime does not take a part of the model.
    """
    _check_need(flow, need)
    weights = token_weights if token_weights is not None else TokenWeights()
    course = course_of(model, sites, cut=cut, token_weights=weights)
    memory = memory or MemorySettings()
    with ActivationStore(memory.activations) as store:
        walk = SegmentWalk(
            model=course.model,
            store=store,
            solve=together or _one_by_one(solve),
            known=known or (lambda segments: ()),
            flow=flow,
            rows=course.rows,
            wants_drift="drift" in need,
            wants_mean="mean" in need,
            memory=memory,
        )
        if course.segments:
            walk.load(_split(samples, course.model, weights.array), course.wiring)
            with SamplePool(walk.count, threads) as pool:
                walk.run(course.segments, pool, progress)
        return SiteWalk(
            segments=len(course.segments),
            samples=walk.count,
            unreachable=course.unreachable,
            notes=(*course.notes, *walk.rows.notes),
        )


def _one_by_one(solve: SolveSite | None) -> SolveSites:
    if solve is None:
        raise ValueError("give solve or together")
    return lambda jobs: [solve(site, statistics) for site, statistics in jobs]


def _check_need(flow: Flow, need: Collection[str]) -> None:
    for name in need:
        if name not in ("hessian", "drift", "mean"):
            raise CalibrationError(
                f"There is no statistic {name!r}: ask for 'hessian', 'drift' or 'mean'."
            )
    if flow not in ("sequential", "one_shot", "asymmetric"):
        raise CalibrationError(
            f"There is no flow {flow!r}: say 'sequential', 'one_shot' or 'asymmetric'."
        )
    if "drift" in need and flow != "asymmetric":
        raise CalibrationError(
            f"The drift is the difference between two networks, and the flow {flow!r} runs only "
            "one: ask for the flow 'asymmetric'."
        )


def _split(
    samples: Samples | Iterable[Any], model: ir.Model, extra: str | None
) -> Iterable[tuple[dict[str, np.ndarray], np.ndarray | None]]:
    """Checked model inputs of each sample, and its extra array."""
    if extra is None:
        for sample in checked_samples(samples, model):
            yield dict(sample), None
        return
    source = Samples.of(samples)
    extras: list[np.ndarray] = []

    def inputs() -> Any:
        for number, sample in enumerate(source):
            if extra not in sample:
                raise CalibrationError(
                    f"Sample {number} of {source.label} lacks the array {extra!r}, which the token "
                    "weights ask for: add it to every sample, one number for each token."
                )
            extras.append(np.asarray(sample[extra]))
            yield {name: array for name, array in sample.items() if name != extra}

    for sample in checked_samples(Samples(inputs, label=source.label), model):
        yield dict(sample), extras.pop()
