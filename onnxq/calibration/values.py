"""Hand inner values of a model to a visitor, sample by sample, a few values at a time."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.calibration.checks import checked_samples
from onnxq.calibration.observed_model import returning, returning_shapes
from onnxq.graph.stage import clone_model
from onnxq.graph.versions import fit_runtime
from onnxq.runtime import open_session

__all__ = ["Visitor", "visit_values"]

DEFAULT_BUDGET = 512 << 20
"""Bytes of one group of values: every further group computes the network again."""


class Visitor(abc.ABC):
    """What is done with the values."""

    @abc.abstractmethod
    def visit(self, name: str, array: np.ndarray) -> None:
        """Take a value as it is on one sample; the array is not kept by the caller."""

    def finish(self, name: str) -> None:  # noqa: B027 - most visitors have nothing to do
        """Called when a value has been visited on every sample."""

    def held_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        """Bytes that are kept for a value until it is finished, given its shape on one sample."""
        return 0


def visit_values(
    model: ir.Model,
    names: Sequence[str],
    samples: Iterable[Mapping[str, np.ndarray]],
    visitor: Visitor,
    *,
    budget: int = DEFAULT_BUDGET,
    threads: int | None = None,
) -> None:
    """Run the model on the samples and visit values of its main graph.

    Args:
        model: left as it is.
        names: values to visit: inputs of the main graph, or computed in it.
        samples: model inputs by name; iterated once for each group of values.
        visitor: is given each value of each sample.
        budget: bytes that one run may return, with what the visitor holds; a single larger value
            is still visited.
        threads: threads of the runtime; None leaves the choice to it.

    Raises:
        CalibrationError: the samples do not fit the model.
        UnsupportedGraph: the runtime does not load the model.
    """
    copy = clone_model(model)
    fit_runtime(copy, convert=True)
    given = checked_samples(samples, model)
    inputs = {value.name for value in copy.graph.inputs}
    for name in dict.fromkeys(name for name in names if name in inputs):
        for sample in given:
            visitor.visit(name, sample[name])
        visitor.finish(name)
    inner = [name for name in dict.fromkeys(names) if name not in inputs]
    for group in _groups(_sizes(copy, inner, given, visitor, threads), budget):
        # lean: the visits work between the runs, and spinning threads would take their cores.
        with open_session(returning(copy, group), threads=threads, lean=True) as session:
            wanted = [spec.name for spec in session.inputs]
            for sample in given:
                for name, array in session.run({key: sample[key] for key in wanted}).items():
                    visitor.visit(name, array)
        for name in group:
            visitor.finish(name)


def _sizes(
    model: ir.Model,
    names: Sequence[str],
    samples: Iterable[Mapping[str, np.ndarray]],
    visitor: Visitor,
    threads: int | None,
) -> dict[str, int]:
    """Bytes of each value on the first sample, in float32, without fetching any."""
    if not names:
        return {}
    shapes_only, outputs = returning_shapes(model, names)
    with open_session(shapes_only, threads=threads, shapes_first=True) as session:
        wanted = [spec.name for spec in session.inputs]
        first = next(iter(samples))
        found = session.run({key: first[key] for key in wanted})
    shapes = {name: tuple(map(int, found[output])) for name, output in outputs.items()}
    return {
        name: 4 * math.prod(shape) + visitor.held_bytes(name, shape)
        for name, shape in shapes.items()
    }


def _groups(sizes: Mapping[str, int], budget: int) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        room -= size
        if not groups or room < 0:
            groups.append([])
            room = budget - size
        groups[-1].append(name)
    return groups
