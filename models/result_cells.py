"""What tables of results share: cells kept as JSON, distances from the float model, figures."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.evaluate import compare_models
from onnxq.models.task import Task
from onnxq.runtime.cache import write_whole
from onnxq.runtime.machine import machine

__all__ = [
    "SOURCE",
    "Feeds",
    "distance",
    "figure",
    "finished_grid",
    "keep",
    "keep_as_is",
    "keep_source",
    "kept",
    "mean",
    "page_part",
]  # fmt: skip

Feeds = Mapping[str, Sequence[Mapping[str, np.ndarray]]]
"""Inputs of each file of a task, by role."""

SOURCE = "source.json"
"""The file, beside the cells of a grid, of what the float model gives."""

_EMBEDDERS = frozenset({"minilm"})
"""Models whose outputs are vectors: no probabilities, so no KL divergence."""


def keep(path: Path, value: Mapping[str, Any]) -> None:
    """Write a finished measurement, with the machine and the day, as `keep_as_is` does."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    keep_as_is(path, {**value, "machine": machine(), "date": today})


def keep_as_is(path: Path, value: Mapping[str, Any]) -> None:
    """Write a measurement at once: a killed run leaves no half of one."""
    write_whole(path, json.dumps(value, indent=1, default=str))


def kept(path: Path) -> dict[str, Any] | None:
    """What `keep` wrote; None when it is not there."""
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def keep_source(folder: Path, task: Task, built: Mapping[str, Path], calibration: Feeds) -> None:
    """Measure the float model, and write that beside the number of samples of each file."""
    samples = {role: len(given) for role, given in calibration.items()}
    keep(folder / SOURCE, {"metrics": dict(task.evaluate(built)), "samples": samples})


def finished_grid(
    folder: Path,
    rows: Iterable[str],
    columns: Sequence[str],
    cell: Callable[[str, str], Mapping[str, Any] | None],
) -> dict[str, Any]:
    """What is finished of a grid, now or in an earlier run; empty before the float model is.

    Args:
        folder: of the grid.
        rows: their names.
        columns: those of each row.
        cell: what is kept of a row and a column, None when it is not finished.

    Returns:
        ``source``, the float model, then for each row that has any, cells by column.
    """
    source = kept(folder / SOURCE)
    if source is None:
        return {}
    found: dict[str, Any] = {"source": source}
    for row in rows:
        for column in columns:
            one = cell(row, column)
            if one is not None:
                found.setdefault(row, {})[column] = one
    return found


def page_part(
    tasks: Mapping[str, Task],
    found: Mapping[str, Mapping[str, Any]],
    head: Sequence[str],
    section: Callable[[Task, Mapping[str, Any]], list[str]],
) -> list[str]:
    """The lines of a part of the page; none when no cell of any model is finished.

    Args:
        tasks: by name, in the order of the page.
        found: what `finished_grid` returns, by name of the task.
        head: the lines before the models.
        section: the lines of one model.
    """
    known = {name: task for name, task in tasks.items() if len(found.get(name, {})) > 1}
    sections = [line for name, task in known.items() for line in section(task, found[name])]
    return [*head, *sections] if known else []


def distance(
    task: Task, built: Mapping[str, Path], models: Mapping[str, ir.Model], held_back: Feeds
) -> dict[str, float | None]:
    """KL divergence of the scores and SQNR of the first output of the last file.

    Args:
        task: whose files they are.
        built: the float files by role.
        models: the quantized ones.
        held_back: inputs of each file that calibration has not seen.
    """
    role = list(built)[-1]
    scores = () if task.name in _EMBEDDERS else None  # None: those that look like scores
    compared = compare_models(built[role], models[role], held_back[role], scores=scores)
    first = compared.outputs[0].deviation
    found: dict[str, float | None] = {"sqnr_db": first.sqnr_db}
    if first.kl is not None:
        found["kl"] = first.kl
    return found


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known; None when none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def figure(value: Any) -> str:
    """Four digits, or a dash for what is no number."""
    return f"{value:.4g}" if isinstance(value, (int, float)) else "–"
