"""What a task is: a real model, the data to calibrate it with, and the number that judges it.

Every model of the zoo has one, all of the same shape, so that one loop can export, quantize and
measure them all. A task may hold several ONNX files (an encoder and a decoder; a detector and a
recognizer): everything is keyed by their role.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir

__all__ = ["Feeds", "Metrics", "Models", "Task"]

Feeds = dict[str, np.ndarray]
"""Inputs of one run, by name."""

Models = Mapping[str, str | Path | ir.Model]
"""The ONNX files of a task by role; a model in memory is taken as well."""

Metrics = dict[str, float | str]
"""What was measured, by name; texts are for people."""


class Task(abc.ABC):
    """One model with its data and its metric.

    Calibration data and evaluation data are deterministic and disjoint.

    Attributes:
        name: key in `onnxq.models.registry.tasks`, and the zoo entry of a model that is fetched.
        title: one line for people.
        primary: the metric that decides; `evaluate` always returns it.
        higher_is_better: the direction of the primary metric.
        tolerance: how far the primary metric may move under static int8, absolute; None for
            perplexities, which are judged relative to their source.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    primary: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    tolerance: ClassVar[float | None] = None

    @abc.abstractmethod
    def build(self, folder: Path) -> dict[str, Path]:
        """Write the float model as ONNX into an empty or new folder; return the files by role.

        Raises:
            ZooError: the model cannot be fetched.
            MissingDependency: a framework that the export needs is not installed.
            ExportError: the export does not match its source.
        """

    def built(self, work: Path) -> dict[str, Path]:
        """The files of `build`, in ``work``; built on the first call, found there afterwards."""
        index = work / "built.json"
        if index.exists():
            return {role: work / path for role, path in json.loads(index.read_text()).items()}
        built = self.build(work / "source")
        index.write_text(json.dumps({r: str(path.relative_to(work)) for r, path in built.items()}))
        return built

    @abc.abstractmethod
    def calibration(self, models: Models) -> dict[str, list[Feeds]]:
        """Calibration inputs for each file, by role.

        Args:
            models: the float files of `build`: later stages are fed with what earlier ones give.
        """

    @abc.abstractmethod
    def evaluate(self, models: Models, *, source: Models | None = None) -> Metrics:
        """Measure the metrics.

        Args:
            models: the files to judge, by role.
            source: the float files, for metrics of agreement with them; None says that ``models``
                are the source, so that agreement is 1.
        """

    @abc.abstractmethod
    def held_back(self, models: Models) -> dict[str, list[Feeds]]:
        """A few inputs for each file that calibration never sees, to compare raw outputs on."""
