"""Two models on the same inputs: how far apart are their outputs, and where does it begin.

Samples are run one at a time through both models, and only sums are kept. Inner values are
fetched a few at a time, as many as fit a fixed number of bytes, so memory stays bounded however
many layers there are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.errors import CalibrationError, UnsupportedGraph
from onnxq.evaluate.deviation import Deviation, DeviationSums
from onnxq.evaluate.feeds import feeds_of
from onnxq.graph import load
from onnxq.graph.reading import find_model_file
from onnxq.graph.sites import find_sites
from onnxq.runtime import Session, TensorSpec, open_session

__all__ = ["Comparison", "ValueComparison", "compare_models"]

Source = ir.Model | str | Path | bytes
Samples = Iterable[Mapping[str, np.ndarray]]
Progress = Callable[[str, int, int], None]

_LAYER_BYTES = 128 << 20
_FIRST_CHUNK = 4
_INTEGER_RESULTS = frozenset(
    ["MatMulInteger", "MatMulInteger16", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm"]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueComparison:
    """One output or inner value of both models.

    Attributes:
        name: of the value in the reference; for a layer: of the site.
        deviation: the figures.
    """

    name: str
    deviation: Deviation

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no infinity: it is written ``"inf"`` or ``"-inf"``."""
        figures = dataclasses.asdict(self.deviation)
        return {"name": self.name, **{key: _plain(value) for key, value in figures.items()}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of two models.

    Attributes:
        outputs: one row for each output, in the order of the reference.
        layers: one row for each site found in both models, in graph order; empty unless asked for.
        samples: number of samples run.
        skipped: sites that could not be compared, each with the reason.
    """

    outputs: tuple[ValueComparison, ...]
    layers: tuple[ValueComparison, ...] = ()
    samples: int
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def worst_layer(self) -> ValueComparison | None:
        """The layer with the lowest SQNR; None when no layers were compared."""
        return min(
            self.layers,
            key=lambda row: math.inf if row.deviation.sqnr_db is None else row.deviation.sqnr_db,
            default=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; infinities are the strings ``"inf"`` and ``"-inf"``."""
        return {
            "samples": self.samples,
            "outputs": [row.to_dict() for row in self.outputs],
            "layers": [row.to_dict() for row in self.layers],
            "skipped": dict(self.skipped),
        }


def compare_models(
    reference: Source,
    candidate: Source,
    samples: Samples,
    *,
    layers: bool = False,
    scores: Collection[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run both models on every sample and measure the deviation of the second from the first.

    Args:
        reference: the model to measure against: a file or folder, bytes, or a model in memory.
        candidate: the model to measure.
        samples: inputs by name; iterated once, or several times when ``layers``.
        layers: also compare the results of all sites of the main graph that both models compute:
            the value of the same name, or else the result of the site of the same name.
        scores: outputs that are class scores, logits or probabilities along the last axis, for KL
            and top-1 agreement. None takes every float output of rank 2 or 3 with a static last
            dimension above 1.
        threads: as for `onnxq.runtime.open_session`.
        progress: called with (what, done, total); total 0 means unknown.

    Raises:
        UnsupportedGraph: the models' outputs have different names, types or shapes, or an output
            named in ``scores`` does not exist.
        CalibrationError: there are no samples, or a sample lacks an input.
        OnnxqError: the runtime failed.
    """
    report = progress or (lambda what, done, total: None)
    reference, candidate = _file(reference), _file(candidate)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(open_session(reference, threads=threads))
        second = stack.enter_context(open_session(candidate, threads=threads))
        _same_outputs(first.outputs, second.outputs)
        names = [spec.name for spec in first.outputs]
        rated = _score_outputs(first.outputs, scores)
        sums = {name: DeviationSums(scores=name in rated) for name in names}
        pairs = [(name, name) for name in names]
        samples = list(samples) if isinstance(samples, Iterator) else samples
        count = _run(first, second, samples, pairs, sums, report)
    if count == 0:
        raise CalibrationError("There are no samples to compare the models on: give at least one.")
    rows: tuple[ValueComparison, ...] = ()
    skipped: dict[str, str] = {}
    if layers:
        rows, skipped = _compare_layers(reference, candidate, samples, threads, report)
    return Comparison(
        outputs=tuple(ValueComparison(name=n, deviation=sums[n].result()) for n in names),
        layers=rows,
        samples=count,
        skipped=skipped,
    )


def _file(source: Source) -> Source:
    """The model file of a folder; anything else as it is."""
    return find_model_file(Path(source)) if isinstance(source, (str, Path)) else source


def _run(
    first: Session,
    second: Session,
    samples: Samples,
    pairs: Sequence[tuple[str, str]],
    sums: Mapping[str, DeviationSums],
    report: Progress,
) -> int:
    """Add every sample of the paired values to the sums, by the first name; give their number."""
    count = 0
    for count, sample in enumerate(samples, start=1):
        ours = first.run(feeds_of(first, sample, count - 1), [a for a, _ in pairs])
        theirs = second.run(feeds_of(second, sample, count - 1), [b for _, b in pairs])
        for a, b in pairs:
            _same_shapes(a, ours[a], theirs[b], count - 1)
            sums[a].add(ours[a], theirs[b])
        report("compare", count, 0)
    return count


def _same_outputs(first: Sequence[TensorSpec], second: Sequence[TensorSpec]) -> None:
    ours, theirs = {spec.name for spec in first}, {spec.name for spec in second}
    if ours != theirs:
        only = [f"{name!r} is only in the reference" for name in sorted(ours - theirs)]
        only += [f"{name!r} is only in the candidate" for name in sorted(theirs - ours)]
        raise UnsupportedGraph(
            f"The models cannot be compared, their outputs differ: {'; '.join(only[:4])}. "
            "Compare two forms of one model."
        )


def _same_shapes(name: str, first: np.ndarray, second: np.ndarray, index: int) -> None:
    kinds = {"f": "f", "V": "f"}
    same_kind = kinds.get(first.dtype.kind, first.dtype.kind) == kinds.get(
        second.dtype.kind, second.dtype.kind
    )
    if first.shape != second.shape or not same_kind:
        raise UnsupportedGraph(
            f"The models cannot be compared: {name!r} is {first.dtype}{list(first.shape)} in the "
            f"reference and {second.dtype}{list(second.shape)} in the candidate, on sample {index}."
        )


def _score_outputs(outputs: Sequence[TensorSpec], scores: Collection[str] | None) -> set[str]:
    if scores is None:
        return {spec.name for spec in outputs if _looks_like_scores(spec)}
    names = [spec.name for spec in outputs]
    unknown = [name for name in scores if name not in names]
    if unknown:
        raise UnsupportedGraph(
            f"There is no output {unknown[0]!r} to take scores from; the outputs are "
            f"{', '.join(map(repr, names[:8]))}."
        )
    return set(scores)


def _looks_like_scores(spec: TensorSpec) -> bool:
    if spec.dtype.kind not in "fV" or len(spec.shape) not in (2, 3):
        return False
    last = spec.shape[-1]
    return isinstance(last, int) and last > 1


def _compare_layers(
    reference: Source,
    candidate: Source,
    samples: Samples,
    threads: int | None,
    report: Progress,
) -> tuple[tuple[ValueComparison, ...], dict[str, str]]:
    ours = reference if isinstance(reference, ir.Model) else load(reference)
    theirs = candidate if isinstance(candidate, ir.Model) else load(candidate)
    pairs, skipped = _pair_layers(ours, theirs)
    rows: list[ValueComparison] = []
    size, done = _FIRST_CHUNK, 0
    while done < len(pairs):
        chunk = pairs[done : done + size]
        sums = {first: DeviationSums() for _, first, _ in chunk}
        with (
            open_session(ours, threads=threads, extra_outputs=[a for _, a, _ in chunk]) as first,
            open_session(theirs, threads=threads, extra_outputs=[b for _, _, b in chunk]) as second,
        ):
            values = [(a, b) for _, a, b in chunk]
            count = _run(first, second, samples, values, sums, lambda *_: None)
        found = [ValueComparison(name=name, deviation=sums[a].result()) for name, a, _ in chunk]
        # An integer site (MatMulInteger) has no figures in dB.
        rows.extend(row for row in found if row.deviation.sqnr_db is not None)
        done += len(chunk)
        size = _next_chunk(found, count)
        report("compare layers", done, len(pairs))
    return tuple(rows), skipped


def _next_chunk(rows: Sequence[ValueComparison], samples: int) -> int:
    """How many values of the size just seen fit the bytes, in both models at up to 8 bytes."""
    largest = max((row.deviation.elements // samples for row in rows), default=1)
    return max(1, min(64, _LAYER_BYTES // (16 * max(1, largest))))


def _pair_layers(
    ours: ir.Model, theirs: ir.Model
) -> tuple[list[tuple[str, str, str]], dict[str, str]]:
    """(site, value in the reference, value in the candidate), and the sites without a partner."""
    computed = {value.name for node in theirs.graph for value in node.outputs}
    partners = {site.name: site for site in find_sites(theirs) if not site.path}
    pairs: dict[str, tuple[str, str, str]] = {}
    skipped: dict[str, str] = {}
    for site in find_sites(ours):
        name = site.result.name or ""
        partner = partners.get(site.name)
        if site.path:
            skipped[site.name] = "it is inside a body or function, whose values cannot be fetched"
        elif not name:
            skipped[site.name] = "the model leaves its first result out"
        elif name in computed:
            pairs.setdefault(name, (site.name, name, name))
        elif partner is None:
            skipped[site.name] = f"the candidate has no value {name!r} and no site of this name"
        elif not partner.result.name:
            skipped[site.name] = "the candidate leaves its first result out"
        elif partner.kind in _INTEGER_RESULTS and partner.kind != site.kind:
            skipped[site.name] = f"in the candidate it is {partner.kind}, which gives integers"
        else:
            pairs.setdefault(name, (site.name, name, partner.result.name or ""))
    return list(pairs.values()), skipped


def _plain(value: float | int | None) -> float | int | str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
