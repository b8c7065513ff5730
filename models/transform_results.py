"""Transforms by formats on real models: the last part of ``docs/results.md``.

Every cell prepares one model, applies one set of transforms, and quantizes it in one set of
formats, by the same passes that recipes are made of; it measures the model's own metric and how
far the outputs moved (KL divergence of the scores of tokens in nats, else the SQNR in dB). Finished
cells are kept as JSON files, so that an interrupted run goes on where it stopped. A pass that
refuses, or is not there, makes a cell that says so.
"""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq.errors import OnnxqError, UnsupportedGraph
from onnxq.graph import load
from onnxq.models.registry import tasks
from onnxq.models.result_cells import (
    SOURCE,
    Feeds,
    distance,
    finished_grid,
    keep,
    keep_source,
    kept,
    mean,
)
from onnxq.models.task import Task
from onnxq.models.transform_grid import (
    FORMATS,
    PREPARE,
    SUPPORT,
    TRANSFORMS,
    Row,
    is_in_grid,
    recipe_of,
)
from onnxq.passes.quantize_activations import QuantizeActivations
from onnxq.passes.runner import RecipeResult, run_recipe

__all__ = [
    "Given",
    "finished_transforms",
    "measure_rounded",
    "measure_transforms",
    "transform_tasks",
    "transformed",
]


Given = tuple[Mapping[str, Path], Feeds, Feeds]
"""The float files of a task, calibration inputs, and held-back ones, by role."""

Transformed = tuple[Mapping[str, ir.Model], float, list[str]]
"""The transformed models by role, the seconds that took, and what changed nothing, as clauses."""


def transform_tasks() -> dict[str, Task]:
    """The tasks of `FORMATS` by name."""
    known = tasks()
    return {name: known[name] for name in FORMATS if name in known}


def measure_transforms(
    task: Task, work: Path, *, rows: Sequence[str] | None = None, again: bool = False
) -> dict[str, Any]:
    """All cells of one model, by transforms and formats; a refusal is kept as its sentence.

    A cell that other passes or options gave than the grid now has is measured anew.

    Args:
        task: a task named in `FORMATS`.
        work: folder for the float model and for finished cells.
        rows: names in `TRANSFORMS`; all when None.
        again: measure cells that are there once more.
    """
    folder = work / "transforms"
    missing = {
        name: [
            fmt
            for fmt in FORMATS[task.name]
            if is_in_grid(task.name, name, fmt)
            and (again or _finished(task, folder, name, fmt) is None)
        ]
        for name in (rows or TRANSFORMS)
    }
    begun = (folder / SOURCE).exists() and not again
    if any(missing.values()) or not begun:
        built = task.built(work)
        calibration, held_back = task.calibration(built), task.held_back(built)
        if not begun:
            keep_source(folder, task, built, calibration)
        for name, formats in missing.items():
            if formats:
                _measure_row(task, folder, name, formats, (built, calibration, held_back))
    return finished_transforms(task, work)


def finished_transforms(task: Task, work: Path) -> dict[str, Any]:
    """What `measure_transforms` has finished, now or before; empty when nothing is there.

    Returns:
        ``source``, the float model, then for each row that has any, cells by format.
    """
    folder = work / "transforms"
    return finished_grid(
        folder, TRANSFORMS, list(FORMATS[task.name]), functools.partial(_finished, task, folder)
    )


def _finished(task: Task, folder: Path, name: str, key: str) -> dict[str, Any] | None:
    """A cell that the passes of the present grid gave."""
    cell = kept(_file(folder, name, key)) or {}
    return cell if cell.get("passes") == _passes(task, name, key) else None


def _passes(task: Task, name: str, key: str) -> str:
    """The passes of a cell and their options, as a text to compare."""
    fmt, transform = FORMATS[task.name][key], TRANSFORMS[name]
    rows = (*PREPARE, *transform.rows(fmt), *fmt.rows(clip_is_learned=transform.learns_clip))
    return json.dumps(rows)


def _file(folder: Path, transforms: str, fmt: str) -> Path:
    return folder / f"{transforms}-{fmt}.json".replace(", ", "+").replace(" ", "_").lower()


def _measure_row(task: Task, folder: Path, name: str, formats: Sequence[str], given: Given) -> None:
    """The cells of one set of transforms, applied once for all formats that ask for the same."""
    transform = TRANSFORMS[name]
    applied: dict[str, Transformed | OnnxqError] = {}
    for key in formats:
        fmt = FORMATS[task.name][key]
        rows = transform.rows(fmt)
        if repr(rows) not in applied:
            applied = {repr(rows): transformed(name, rows, given)}  # one at a time in memory
        found = applied[repr(rows)]
        cell = (
            _refused(found)
            if isinstance(found, OnnxqError)
            else measure_rounded(
                task, found, fmt.rows(clip_is_learned=transform.learns_clip), given
            )
        )
        keep(_file(folder, name, key), {**cell, "passes": _passes(task, name, key)})


def transformed(name: str, rows: Sequence[Row], given: Given) -> Transformed | OnnxqError:
    """The float models of a task, prepared and with some passes applied; or why not.

    Args:
        name: of the set of passes, for messages.
        rows: the passes behind `PREPARE`.
        given: files and inputs of the task.
    """
    built, calibration, _ = given
    start = time.perf_counter()
    try:
        recipe = recipe_of(name, (*PREPARE, *rows))
        results = {
            role: run_recipe(load(path), recipe, samples=calibration[role], check="off")
            for role, path in built.items()
        }
        idle = _idle(results)
    except OnnxqError as error:
        return error
    models = {role: result.model for role, result in results.items()}
    return models, time.perf_counter() - start, idle


def _idle(results: Mapping[str, RecipeResult]) -> list[str]:
    """A clause for each transform that changed no file.

    Raises:
        UnsupportedGraph: none did anything: the cells would be those without it.
    """
    clauses = []
    done = False
    for steps in zip(*(result.steps[len(PREPARE) :] for result in results.values()), strict=True):
        key = steps[0].step.key()
        if key in SUPPORT:
            continue
        if any(step.report.modified for step in steps):
            done = True
            continue
        reasons = Counter(site.reason for step in steps for site in step.report.left)
        told = "; ".join(f"{count} sites: {why}" for why, count in reasons.most_common(3))
        clauses.append(f"{key} changed nothing: {told}")
    if clauses and not done:
        raise UnsupportedGraph(" ".join(clauses))
    return clauses


def measure_rounded(
    task: Task, models_given: Transformed, rows: Sequence[Row], given: Given
) -> dict[str, Any]:
    """A cell: the transformed models rounded by some passes, and what that did to them.

    Args:
        task: whose metric it is.
        models_given: what `transformed` gave.
        rows: the passes that round, weights last.
        given: files and inputs of the task.
    """
    built, calibration, held_back = given
    models, transform_seconds, idle = models_given
    start = time.perf_counter()
    try:
        recipe = recipe_of("formats", rows)
        results = {
            role: run_recipe(model, recipe, samples=calibration[role], check="off")
            for role, model in models.items()
        }
        done = {role: result.model for role, result in results.items()}
        seconds = time.perf_counter() - start
        metrics = task.evaluate(done, source=built)
        apart = distance(task, built, done, held_back)
    except OnnxqError as error:
        return _refused(error)
    return {
        "metric": metrics[task.primary],
        "seconds": seconds,
        "transform_seconds": transform_seconds,
        "bits": mean(
            [
                site.bits
                for result in results.values()
                for site in result.steps[-1].report.changed
                if site.format == rows[-1][1]["format"]
            ]
        ),
        "static": _static(results.values()),
        "idle": idle,
        **apart,
    }


def _static(results: Iterable[RecipeResult]) -> dict[str, int] | None:
    """How many sites read an activation with one calibrated scale, of those that were to.

    None when none was to: scales of tokens were asked for, or activations stay in float.
    """
    steps = [step for result in results for step in result.steps]
    asked = [s for s in steps if isinstance(s.step, QuantizeActivations) and s.step.needs_samples]
    if not asked:
        return None
    changed = [site for step in asked for site in step.report.changed]
    per_tensor = sum(str(site.format).endswith("_tensor") for site in changed)
    return {"sites": per_tensor, "of": len(changed)}


def _refused(error: OnnxqError) -> dict[str, Any]:
    return {"refused": f"{type(error).__name__}: {error}"}
