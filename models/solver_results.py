"""Solvers by formats on real models: the second part of ``docs/results.md``.

Every cell quantizes the weights of one model in one format with one solver, nothing else changed,
and measures the model's own metric and how far its outputs moved (KL divergence of the logits where
there are any, in nats, else the SQNR). Finished cells are kept as JSON files, so that an
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq.errors import OnnxqError
from onnxq.graph import load
from onnxq.models.registry import tasks
from onnxq.models.result_cells import (
    SOURCE,
    Feeds,
    distance,
    figure,
    finished_grid,
    keep,
    keep_source,
    kept,
    mean,
    page_part,
)
from onnxq.models.result_store import measured_on
from onnxq.models.smollm2 import SmolLm2
from onnxq.models.task import Task
from onnxq.passes.base import SiteReport
from onnxq.passes.recipe import load_recipe
from onnxq.passes.runner import run_recipe

__all__ = [
    "GRID",
    "SOLVERS",
    "finished_cells",
    "measure_solvers",
    "solver_part",
    "solver_section",
    "solver_tasks",
]

SOLVERS: Mapping[str, tuple[str, ...]] = {
    "nearest": ("solver=nearest", "search=minmax"),
    "nearest, mse": ("solver=nearest", "search=mse"),
    "nearest, NeUQI": ("solver=nearest", "search=neuqi"),
    "nearest, HQQ": ("solver=nearest", "search=hqq"),
    "EasyQuant": ("solver=easyquant",),
    "GPTQ": ("solver=gptq",),
    "GPTQ, one-shot": ("solver=gptq", "flow=one_shot"),
    "GPTQ, 8 columns kept": ("solver=gptq", "keep_columns=8"),
    "GPTAQ": ("solver=gptaq", "flow=asymmetric"),
    "coordinate descent": ("solver=coordinate_descent",),
    "decoupleQ": ("solver=decoupleq",),
}
"""The settings of ``quantize_weights`` behind each row."""

GRID: Mapping[str, tuple[str, ...]] = {
    "smollm2": ("int4_g128_asym_f16", "int3_g128_asym_f16", "int4_channel", "int2_g64_asym_f16"),
    "minilm": ("int4_g128", "int3_g128", "int2_g64_asym"),
    "whisper-tiny-en": ("int4_g128", "int3_g128", "int2_g64_asym"),
    "efficientnet-lite0": ("int4_channel", "int3_channel"),
}
"""The formats of each model: convolutions take one scale per channel."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Cell:
    task: Task
    format: str
    solver: str

    @property
    def file(self) -> str:
        return f"{self.format}-{self.solver.replace(', ', '_').replace(' ', '_').lower()}.json"


def solver_tasks() -> dict[str, Task]:
    """The tasks of `GRID` by name; SmolLM2 with 32 windows to calibrate on instead of 16."""
    known = {**tasks(), SmolLm2.name: SmolLm2(calibration_windows=32)}
    return {name: known[name] for name in GRID}


def measure_solvers(task: Task, work: Path, *, again: bool = False) -> dict[str, Any]:
    """All cells of one model, by format and solver; a refusal is kept as its sentence.

    Args:
        task: a task named in `GRID`.
        work: folder for the float model and for finished cells.
        again: measure cells that are there once more.
    """
    cells = [
        _Cell(task=task, format=fmt, solver=name) for fmt in GRID[task.name] for name in SOLVERS
    ]
    folder = work / "solvers"
    missing = [cell for cell in cells if again or not (folder / cell.file).exists()]
    begun = (folder / SOURCE).exists() and not again
    if missing or not begun:
        built = task.built(work)
        calibration = task.calibration(built)
        held_back = task.held_back(built)
        if not begun:
            keep_source(folder, task, built, calibration)
        for cell in missing:
            keep(folder / cell.file, _measure(cell, built, calibration, held_back))
    return finished_cells(task, work)


def finished_cells(task: Task, work: Path) -> dict[str, Any]:
    """What `measure_solvers` has finished, now or in an earlier run; empty when nothing is there.

    Returns:
        ``source``, the float model, then for each format that has any, cells by solver.
    """
    folder = work / "solvers"

    def cell(fmt: str, name: str) -> dict[str, Any] | None:
        return kept(folder / _Cell(task=task, format=fmt, solver=name).file)

    return finished_grid(folder, GRID[task.name], list(SOLVERS), cell)


def _measure(
    cell: _Cell,
    built: Mapping[str, Path],
    calibration: Feeds,
    held_back: Feeds,
) -> dict[str, Any]:
    settings = (f"format={cell.format}", *SOLVERS[cell.solver])
    recipe = load_recipe(
        "int4_gptq", ["convert_opset.minimum=25", *(f"quantize_weights.{s}" for s in settings)]
    )
    start = time.perf_counter()
    models: dict[str, ir.Model] = {}
    sites: list[SiteReport] = []
    try:
        for role, path in built.items():
            result = run_recipe(load(path), recipe, samples=calibration[role], check="off")
            models[role] = result.model
            sites += [site for site in result.steps[-1].report.changed if site.format]
        seconds = time.perf_counter() - start
        metrics = cell.task.evaluate(models, source=built)
    except OnnxqError as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    mine = [site for site in sites if site.format == cell.format]
    return {
        "metric": metrics[cell.task.primary],
        "seconds": seconds,
        "bits": mean([site.bits for site in mine]),
        "error": mean([site.error for site in mine]),
        "output_error": mean([site.output_error for site in mine]),
        **distance(cell.task, built, models, held_back),
    }


def solver_part(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines of the part on solvers; none when no cell of any model is finished.

    Args:
        found: what `measure_solvers` returns, by name of the task.
    """
    head = [
        "## Solvers",
        "",
        "Weights alone are quantized, by the recipe `int4_gptq` with the format and the solver of "
        "each cell in place of its own, the head and embeddings in 8 bits as there; see "
        "[solvers.md](solvers.md). Three figures a cell: the model's metric; the distance of its "
        "outputs from the float model's on held-back inputs (KL divergence of the scores in nats, "
        "or SQNR in dB); seconds of one run, calibration included, with whatever else the machine "
        "did meanwhile. A dash: not measured.",
        "",
    ]
    return page_part(solver_tasks(), found, head, solver_section)


def solver_section(task: Task, found: Mapping[str, Any]) -> list[str]:
    """The lines of one model: a table with a row for each solver and three columns a format."""
    formats = [key for key in found if key != "source"]
    has_kl = any("kl" in row for fmt in formats for row in found[fmt].values())
    second, what = ("kl", "KL") if has_kl else ("sqnr_db", "SQNR dB")
    source = found["source"]
    counts = ", ".join(f"{count} ({role})" for role, count in source["samples"].items())
    lines = [
        f"### {task.title} (`{task.name}`): {task.primary}",
        "",
        f"{source['metrics'][task.primary]:.4g} in float32. Calibration samples: {counts}.",
        "",
        "| solver | " + " | ".join(f"`{f}` | {what} | s" for f in formats) + " |",
        "|---|" + "---:|" * (3 * len(formats)),
    ]
    for name in SOLVERS:
        rows = [found[fmt].get(name, {}) for fmt in formats]
        values = [figure(row.get(key)) for row in rows for key in ("metric", second, "seconds")]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    plain = {name for name, settings in SOLVERS.items() if "keep_columns" not in str(settings)}
    bits = {
        fmt: mean([row.get("bits") for name, row in found[fmt].items() if name in plain])
        for fmt in formats
    }
    stored = ", ".join(f"`{fmt}` {figure(value)}" for fmt, value in bits.items())
    lines += [
        "",
        f"Bits in the file for each weight, scales included, columns kept not: {stored}. "
        + measured_on([row for fmt in formats for row in found[fmt].values()]),
        "",
    ]
    refused = [
        f"- `{fmt}`, {name}: refused: {row['refused']}"
        for fmt in formats
        for name, row in found[fmt].items()
        if "refused" in row
    ]
    return [*lines, *refused, *([""] if refused else [])]
