"""Transforms by formats on real models: the last part of ``docs/results.md``.

Every cell prepares one model, applies one set of transforms, and quantizes it in one set of
formats, by the same passes that recipes are made of; it measures the model's own metric and how
far the outputs moved (KL divergence of the scores of tokens in nats, else the SQNR in dB). Finished
cells are kept as JSON files, so that an interrupted run goes on where it stopped. A pass that
refuses, or is not there, makes a cell that says so.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq.errors import OnnxqError, UnsupportedGraph
from onnxq.graph import load
from onnxq.models.registry import tasks
from onnxq.models.result_cells import Feeds, distance, figure, keep
from onnxq.models.smollm2 import SmolLm2
from onnxq.models.task import Task
from onnxq.models.transform_grid import (
    FORMATS,
    PREPARE,
    ROTATIONS,
    SUPPORT,
    TRANSFORMS,
    Row,
    recipe_of,
)
from onnxq.passes.runner import RecipeResult, run_recipe

__all__ = [
    "finished_transforms",
    "measure_transforms",
    "transform_part",
    "transform_section",
    "transform_tasks",
]


_WRITERS = frozenset({"smollm2", "whisper-tiny-en"})
"""Models that write tokens: the divergence of their scores says more than that of a classifier that
is sure of nearly every image."""

Given = tuple[Mapping[str, Path], Feeds, Feeds]
"""The float files of a task, calibration inputs, and held-back ones, by role."""

Transformed = tuple[Mapping[str, ir.Model], float, list[str]]
"""The transformed models by role, the seconds that took, and what changed nothing, as clauses."""


def transform_tasks() -> dict[str, Task]:
    """The tasks of `FORMATS` by name; SmolLM2 with 32 windows to calibrate on instead of 16."""
    known = {**tasks(), SmolLm2.name: SmolLm2(calibration_windows=32)}
    return {name: known[name] for name in FORMATS if name in known}


def measure_transforms(
    task: Task, work: Path, *, rows: Sequence[str] | None = None, again: bool = False
) -> dict[str, Any]:
    """All cells of one model, by transforms and formats; a refusal is kept as its sentence.

    Args:
        task: a task named in `FORMATS`.
        work: folder for the float model and for finished cells.
        rows: names in `TRANSFORMS`; all when None.
        again: measure cells that are there once more.
    """
    folder = work / "transforms"
    missing = {
        name: [fmt for fmt in FORMATS[task.name] if again or not _file(folder, name, fmt).exists()]
        for name in (rows or TRANSFORMS)
    }
    source = folder / "source.json"
    if any(missing.values()) or again or not source.exists():
        built = task.built(work)
        calibration, held_back = task.calibration(built), task.held_back(built)
        if again or not source.exists():
            samples = {role: len(given) for role, given in calibration.items()}
            keep(source, {"metrics": dict(task.evaluate(built)), "samples": samples})
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
    if not (folder / "source.json").exists():
        return {}
    found: dict[str, Any] = {"source": json.loads((folder / "source.json").read_text())}
    for name in TRANSFORMS:
        for fmt in FORMATS[task.name]:
            path = _file(folder, name, fmt)
            if path.exists():
                found.setdefault(name, {})[fmt] = json.loads(path.read_text())
    return found


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
            applied = {repr(rows): _transformed(name, rows, given)}  # one at a time in memory
        found = applied[repr(rows)]
        cell = (
            _refused(found)
            if isinstance(found, OnnxqError)
            else _measure(task, found, fmt.rows(clip_is_learned=transform.learns_clip), given)
        )
        keep(_file(folder, name, key), cell)


def _transformed(name: str, rows: Sequence[Row], given: Given) -> Transformed | OnnxqError:
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


def _measure(
    task: Task, transformed: Transformed, rows: Sequence[Row], given: Given
) -> dict[str, Any]:
    built, calibration, held_back = given
    models, transform_seconds, idle = transformed
    start = time.perf_counter()
    try:
        recipe = recipe_of("formats", rows)
        done = {
            role: run_recipe(model, recipe, samples=calibration[role], check="off").model
            for role, model in models.items()
        }
        seconds = time.perf_counter() - start
        metrics = task.evaluate(done, source=built)
        apart = distance(task, built, done, held_back)
    except OnnxqError as error:
        return _refused(error)
    return {
        "metric": metrics[task.primary],
        "seconds": seconds,
        "transform_seconds": transform_seconds,
        "idle": idle,
        **apart,
    }


def _refused(error: OnnxqError) -> dict[str, Any]:
    return {"refused": f"{type(error).__name__}: {error}"}


def transform_part(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines of the part on transforms; none when no cell of any model is finished.

    Args:
        found: what `measure_transforms` returns, by name of the task.
    """
    known = {name: task for name, task in transform_tasks().items() if len(found.get(name, {})) > 1}
    if not known:
        return []
    lines = [
        "## Transforms",
        "",
        "Rows: what is done before rounding; columns: weights and activations in bits. W8A8: int8 "
        "weights per channel, rounded to nearest, with activations in int8, a scale for each token "
        "or one calibrated scale for each tensor. W4 and W3: GPTQ with zero points in groups, a "
        "language head in 8 bits and its input in float. A8, A4: a scale for each token; in 4 bits "
        "with a zero point and 0.9 of the range, or what was learned of it. `smooth`: SmoothQuant "
        "with its exponent searched, AWQ where activations stay in float. KLT: principal "
        "components, then a Hadamard matrix. Each cell: the model's metric, and in brackets how "
        "far its outputs are from the float model's on held-back inputs. See "
        "[transforms.md](transforms.md).",
        "",
    ]
    for name, task in known.items():
        lines += transform_section(task, found[name])
    return lines


def transform_section(task: Task, found: Mapping[str, Any]) -> list[str]:
    """The lines of one model: all rows by formats, then KLT against Hadamard."""
    formats = list(FORMATS[task.name])
    second = "kl" if task.name in _WRITERS else "sqnr_db"
    unit = "KL in nats" if second == "kl" else "SQNR in dB"
    source = found["source"]
    counts = ", ".join(f"{count} ({role})" for role, count in source["samples"].items())
    lines = [
        f"### {task.title} (`{task.name}`): {task.primary}",
        "",
        f"{source['metrics'][task.primary]:.4g} in float32. Calibration samples: {counts}. In "
        f"brackets: {unit}.",
        "",
        "| transforms | " + " | ".join(formats) + " |",
        "|---|" + "---:|" * len(formats),
    ]
    for name in TRANSFORMS:
        row = found.get(name, {})
        values = [_cell(row.get(fmt, {}), second) for fmt in formats]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return [*lines, "", *_rotations(found, formats), *_refusals(found)]


def _cell(cell: Mapping[str, Any], second: str) -> str:
    if "metric" not in cell:
        return "–"
    return f"{figure(cell['metric'])} ({figure(cell.get(second))})"


def _rotations(found: Mapping[str, Any], formats: Sequence[str]) -> list[str]:
    """KLT and Hadamard side by side: a row for each set of rotations, two figures a format."""
    has_any = any("metric" in c for k in found if "KLT" in k for c in found[k].values())
    if not has_any:
        return []
    lines = [
        "KLT / Hadamard:",
        "",
        "| rotations | " + " | ".join(formats) + " |",
        "|---|" + "---:|" * len(formats),
    ]
    for which in ROTATIONS:
        pairs = [
            " / ".join(
                figure(found.get(f"{kind} {which}", {}).get(fmt, {}).get("metric"))
                for kind in ("KLT", "Hadamard")
            )
            for fmt in formats
        ]
        lines.append(f"| {which} | " + " | ".join(pairs) + " |")
    return [*lines, ""]


def _refusals(found: Mapping[str, Any]) -> list[str]:
    """Each reason once, with the cells it is the reason of; then what did nothing in a row."""
    where: dict[str, list[str]] = {}
    for name in TRANSFORMS:
        row = found.get(name, {})
        by_reason: dict[str, list[str]] = {}
        for fmt, cell in row.items():
            for reason in [cell["refused"]] if "refused" in cell else cell.get("idle", ()):
                by_reason.setdefault(reason, []).append(fmt)
        for reason, formats in by_reason.items():
            whole = len(formats) == len(row)
            where.setdefault(reason, []).append(
                name if whole else f"{name} in {', '.join(formats)}"
            )
    lines = [f"- {'; '.join(places)}: {reason}" for reason, places in where.items()]
    return [*lines, *([""] if lines else [])]
