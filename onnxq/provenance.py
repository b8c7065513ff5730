"""What an artifact came from: its original, its data, its recipe; and its float twin.

The *float twin* is the original after the part of the recipe that promises the same function: the
model that the quantizing passes were given. Its sites are those of the artifact, weights scaled and
rotated as there, so it can be compared with the artifact place by place.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.errors import CalibrationError, UsageError
from onnxq.export.artifact import REPORT_NAME, read_artifact
from onnxq.graph.reading import find_model_file
from onnxq.passes.base import Progress, Promise, Samples, no_progress
from onnxq.passes.recipe import Recipe, recipe_from
from onnxq.passes.runner import run_recipe
from onnxq.runtime.cache import file_hash

__all__ = [
    "Data",
    "artifact_report",
    "changed_sites",
    "float_twin",
    "original_of",
    "split_samples",
]

HELD_BACK = 4
"""Samples kept away from calibration to compare the written artifact on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Which data a model was quantized with, as `onnxq.quantize` was told.

    Attributes:
        path: of the data; None when they were given as arrays, or there were none.
        tokenizer: as in `onnxq.quantize`.
        window: of a text, tokens in a sample.
        limit: samples at most.
    """

    path: str | None = None
    tokenizer: str | None = None
    window: int = 512
    limit: int | None = None

    @classmethod
    def of(cls, report: Mapping[str, Any] | None) -> Data:
        """What the report of an artifact says; nothing known when it does not say."""
        known = ((report or {}).get("source") or {}).get("data") or {}
        fields = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in known.items() if name in fields})


def artifact_report(model: str | Path) -> Mapping[str, Any] | None:
    """The ``onnxq.json`` beside a model; None when it is no artifact of onnxq.

    Raises:
        ModelLoadError: there is no model.
        ArtifactError: the file is there and cannot be read.
    """
    folder = find_model_file(Path(model)).parent
    return read_artifact(folder).report if (folder / REPORT_NAME).exists() else None


def original_of(report: Mapping[str, Any] | None) -> Path | None:
    """The model an artifact was made from, when it is still there and still the same file."""
    source = (report or {}).get("source") or {}
    path = source.get("path")
    if not path or not Path(path).exists():
        return None
    file = find_model_file(Path(path))
    known = (source.get("sha256") or {}).get(file.name)
    return Path(path) if known is None or known == file_hash(file) else None


def changed_sites(report: Mapping[str, Any]) -> list[set[str]]:
    """For each pass of an artifact's recipe, the sites that it changed."""
    return [{s["site"] for s in step["sites"] if not s["reason"]} for step in report["steps"]]


def float_twin(
    original: ir.Model,
    report: Mapping[str, Any] | None,
    samples: Samples | None,
    progress: Progress = no_progress,
) -> ir.Model:
    """The original after the passes of an artifact's recipe that keep its function.

    Args:
        original: left as it is; returned itself when there is no report.
        report: of the artifact.
        samples: what the artifact was calibrated with; only passes that look at data need them.
        progress: called as passes run.

    Raises:
        UsageError: such passes look at data, and there are none.
        OnnxqError: a pass refuses the model: it is not the artifact's original.
    """
    if report is None:
        return original
    recipe = transforms_of(recipe_from(report["recipe"]))
    if not recipe.steps:
        return original
    if recipe.needs_samples and samples is None:
        who = next(step.key() for step in recipe.steps if step.needs_samples)
        raise UsageError(
            f"The artifact was transformed by {who!r}, which looks at data: give --data with what "
            "it was quantized with, so that the same transform can be made again."
        )
    return run_recipe(original, recipe, samples=samples, check="off", progress=progress).model


def transforms_of(recipe: Recipe) -> Recipe:
    """The passes before the first one that quantizes, without observers of ranges at the end."""
    steps = list(itertools.takewhile(lambda step: step.promise is not Promise.CLOSE, recipe.steps))
    while steps and steps[-1].key() == "calibrate":
        steps.pop()
    return dataclasses.replace(recipe, steps=tuple(steps))


@dataclasses.dataclass(frozen=True)
class _Part:
    """Samples [start, stop) of data that are read again at every pass over them."""

    samples: Iterable[Mapping[str, np.ndarray]]
    start: int
    stop: int

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        return itertools.islice(iter(self.samples), self.start, self.stop)


def split_samples(
    samples: Iterable[Mapping[str, np.ndarray]],
) -> tuple[Iterable[Mapping[str, np.ndarray]], list[Mapping[str, np.ndarray]]]:
    """Calibration samples, and held-back ones from the end that calibration does not see.

    Of a single sample both are that sample.

    Raises:
        CalibrationError: there are none.
    """
    count = sum(1 for _ in samples)
    if count == 0:
        raise CalibrationError("The calibration data hold no samples: give at least one.")
    keep = min(HELD_BACK, count // 2)
    return _Part(samples, 0, count - keep), list(_Part(samples, count - max(keep, 1), count))


def recorded(data: Any, tokenizer: Any, window: int, limit: int | None) -> dict[str, Any]:
    """What ``onnxq.json`` keeps of the data, for `Data.of`."""
    if not isinstance(data, (str, Path)):
        return {}
    known = Data(
        path=str(Path(data).absolute()),
        tokenizer=None if tokenizer is None else str(Path(tokenizer).absolute()),
        window=window,
        limit=limit,
    )
    return {"data": dataclasses.asdict(known)}
