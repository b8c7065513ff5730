"""What is measured for the page: the artifact beside its original, on the same inputs, now."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from onnxq.errors import OnnxqError
from onnxq.evaluate import bench_models, compare_models
from onnxq.evaluate.fallback import single_effects
from onnxq.graph.reading import find_model_file
from onnxq.model_pair import ModelPair
from onnxq.passes.base import Progress, no_progress
from onnxq.report.examples import output_examples
from onnxq.runtime.machine import machine

__all__ = ["Measures", "measure"]

_ROUNDS = 10
_SAMPLES = 2
"""Inputs that losses are measured on: once for each site."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measures:
    """Everything that was measured of one artifact; what failed is a sentence in ``failed``.

    Attributes:
        machine: what it was measured on.
        samples: how many inputs, and whether they were random.
        loss: ``unit``, ``name``, ``whole`` (of the artifact).
        outputs: rows of `onnxq.evaluate.Comparison`.
        layers: likewise, by site, against the float twin.
        effects: by site, how much loss goes when it alone is restored to float.
        effects_of: how many places there are in all.
        bench: a row for the original and one for the artifact.
        examples: outputs side by side, see `onnxq.report.examples`.
        failed: sentences by what could not be measured.
    """

    machine: str
    samples: str
    loss: Mapping[str, Any] | None = None
    outputs: Sequence[Mapping[str, Any]] = ()
    layers: Sequence[Mapping[str, Any]] = ()
    effects: Mapping[str, float] = dataclasses.field(default_factory=dict)
    effects_of: int = 0
    bench: Sequence[Mapping[str, Any]] = ()
    examples: Sequence[Mapping[str, Any]] = ()
    failed: Mapping[str, str] = dataclasses.field(default_factory=dict)


def measure(
    pair: ModelPair,
    *,
    suspects: Sequence[str] = (),
    sites: int = 48,
    labels: Sequence[str] = (),
    progress: Progress = no_progress,
) -> Measures:
    """Run the artifact and its original.

    Args:
        pair: both, with inputs.
        suspects: names of sites, those to look at first; the rest follows in graph order.
        sites: of at most so many the effect of restoring them is measured, one run each.
        labels: names of classes, for the examples.
        progress: called with (what, done, total).
    """
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "outputs": lambda: _outputs(pair, progress),
        "layers": lambda: _layers(pair, progress),
        "loss": lambda: {"loss": _loss(pair)},
        "effects of sites": lambda: _effects(pair, suspects, sites, progress),
        "speed": lambda: _speed(pair, progress),
        "examples": lambda: {"examples": output_examples(pair, labels)},
    }
    for number, (what, step) in enumerate(steps.items()):
        progress("measure", number, len(steps))
        with _kept(what, failed):
            found |= step()
    progress("measure", len(steps), len(steps))
    kind = "random inputs" if pair.is_random else "inputs that calibration has not seen"
    count = len(pair.samples[:_SAMPLES])
    return Measures(
        machine=f"{machine()}, {time.strftime('%Y-%m-%d')}",
        samples=f"{count} {kind}" if count != 1 else f"one of the {kind}",
        failed=failed,
        **found,
    )


@contextmanager
def _kept(what: str, failed: dict[str, str]) -> Iterator[None]:
    """A part that cannot be measured is a sentence on the page and stops nothing."""
    try:
        yield
    except OnnxqError as error:
        failed[what] = f"{error}"


def _outputs(pair: ModelPair, progress: Progress) -> dict[str, Any]:
    files = find_model_file(pair.original), find_model_file(pair.quantized)
    compared = compare_models(*files, pair.samples[:_SAMPLES], progress=progress)
    return {"outputs": compared.to_dict()["outputs"]}


def _layers(pair: ModelPair, progress: Progress) -> dict[str, Any]:
    """Against the float twin: what lies between two layers may be scaled or rotated."""
    compared = compare_models(
        pair.twin, pair.quantized_model, pair.samples[:1], layers=True, progress=progress
    )
    return {"layers": compared.to_dict()["layers"]}


def _loss(pair: ModelPair) -> dict[str, Any]:
    loss = pair.loss(most=_SAMPLES)
    return {"name": loss.name, "unit": loss.unit, "whole": pair.quantized_loss(loss)}


def _effects(
    pair: ModelPair, suspects: Sequence[str], sites: int, progress: Progress
) -> dict[str, Any]:
    if sites == 0:
        return {}
    loss = pair.loss(most=_SAMPLES)
    with pair.hybrid() as hybrid:
        everything = frozenset(hybrid.places)
        first = [name for name in suspects if name in everything]
        order = list(dict.fromkeys([*first, *hybrid.places]))[:sites]

        def without(restored: frozenset[str]) -> float:
            chosen = everything - restored
            return loss.of(lambda sample, names: hybrid.run(sample, chosen, names))

        return {
            "effects": single_effects(order, without, progress),
            "effects_of": len(everything),
        }


def _speed(pair: ModelPair, progress: Progress) -> dict[str, Any]:
    models = [pair.original, pair.quantized]
    rows = bench_models(models, pair.samples[:1], rounds=_ROUNDS, progress=progress)
    return {"bench": [row.to_dict() for row in rows]}
