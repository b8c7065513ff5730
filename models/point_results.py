"""Formats of points on real models: a part of ``docs/results.md``.

Every cell rotates one model as QuaRot does (residual stream, heads, and the inputs of the last
layers of MLPs as they flow), stores its linear layers in one format, the head in 8 bits, and
measures the model's own metric and how far the outputs moved. Finished cells are kept as JSON
files, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxq.errors import OnnxqError
from onnxq.models.result_cells import (
    SOURCE,
    figure,
    finished_grid,
    keep,
    keep_source,
    kept,
    page_part,
)
from onnxq.models.result_store import measured_on
from onnxq.models.solver_results import solver_tasks
from onnxq.models.task import Task
from onnxq.models.transform_grid import PREPARE, ROTATE, Row
from onnxq.models.transform_results import Transformed, measure_rounded, transformed
from onnxq.passes.site_patterns import HEAD

__all__ = [
    "POINTS",
    "finished_points",
    "measure_points",
    "point_part",
    "point_tasks",
]

ROTATED: tuple[Row, ...] = (
    *ROTATE,
    ("rotate_heads", {"rotate_cache": True}),
    ("insert_online_hadamard", {"which": ("r4", "rest")}),
)
"""What comes before rounding."""

_GPTQ = (
    "int4_g128_asym_f16",
    "int3_g128_asym_f16",
    "int2_g64_asym_f16",
    "trellis4_hyb_l13",
    "trellis3_hyb_l12",
    "trellis2.5_hyb_l12",
    "trellis2_hyb_l12",
    "e8p2",
    "vq_d4n256",
    "aq_m2d8n256",
    "ternary2_g128_f16",
    "ternary_g64_f16",
)
POINTS: Mapping[str, Mapping[str, Any]] = {
    **{f"{name}, GPTQ": {"format": name} for name in _GPTQ},
    "lut4, LNQ": {"format": "lut4", "solver": "lnq"},
    "lut3, LNQ": {"format": "lut3", "solver": "lnq"},
}
"""The rows: settings of ``quantize_weights``; GPTQ (LDLQ) unless one names another solver."""


def point_tasks() -> dict[str, Task]:
    """The models of the tables by name; SmolLM2 with 32 windows to calibrate on."""
    known = solver_tasks()
    return {name: known[name] for name in ("smollm2", "whisper-tiny-en")}


def measure_points(
    task: Task, work: Path, *, names: Sequence[str] | None = None, again: bool = False
) -> dict[str, Any]:
    """All cells of one model; a refusal is kept as its sentence.

    A cell that other passes or options gave than `POINTS` now has is measured anew.

    Args:
        task: one of `point_tasks`.
        work: folder for the float model and for finished cells.
        names: rows to measure; all when None.
        again: measure cells that are there once more.
    """
    folder = work / "points"
    missing = [name for name in names or POINTS if again or _finished(folder, name) is None]
    begun = (folder / SOURCE).exists() and not again
    if missing or not begun:
        built = task.built(work)
        given = built, task.calibration(built), task.held_back(built)
        if not begun:
            keep_source(folder, task, built, given[1])
        found = transformed("rotated", ROTATED, given)
        for name in missing:
            keep(_file(folder, name), {**_cell(task, found, name, given), "passes": _passes(name)})
    return finished_points(task, work)


def finished_points(task: Task, work: Path) -> dict[str, Any]:
    """What `measure_points` has finished, now or before; empty when nothing is there.

    Returns:
        ``source``, the float model, then for each row that is finished ``{"cell": cell}``.
    """
    folder = work / "points"
    return finished_grid(folder, POINTS, ["cell"], lambda name, _: _finished(folder, name))


def _cell(task: Task, found: Transformed | OnnxqError, name: str, given: Any) -> dict[str, Any]:
    if isinstance(found, OnnxqError):
        return {"refused": f"{type(found).__name__}: {found}"}
    return measure_rounded(task, found, _rounding(name), given)


def _rounding(name: str) -> tuple[Row, ...]:
    shared: dict[str, Any] = {
        "write": "auto",
        "solver": "gptq",
        "overrides": {HEAD: "int8_g64"},
        "data_free": (HEAD,),
    }
    return (("quantize_weights", {**shared, **POINTS[name]}),)


def _passes(name: str) -> str:
    """The passes of a cell and their options, as a text to compare."""
    return json.dumps((*PREPARE, *ROTATED, *_rounding(name)))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(', ', '-').replace(' ', '_').lower()}.json"


def _finished(folder: Path, name: str) -> dict[str, Any] | None:
    """A cell that the present settings gave."""
    cell = kept(_file(folder, name)) or {}
    return cell if cell.get("passes") == _passes(name) else None


def point_part(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines of the part on formats of points; none when no cell of any model is finished.

    Args:
        found: what `measure_points` returns, by name of the task.
    """
    head = [
        "## Formats of points",
        "",
        "The model is rotated (residual stream, heads, and as they flow the inputs of the last "
        "layers of MLPs and of what no other rotation reaches), its linear layers are stored in "
        "the format of the row with the solver named (GPTQ: block LDLQ with sequential "
        "statistics), the head in 8 bits. Bits: of those layers in the file, scales, tables and "
        "codebooks counted. Distance of the outputs from the float model's on held-back inputs: "
        "KL divergence in nats, or SQNR in dB. Seconds: of rounding, with whatever else the "
        "machine did meanwhile. See [formats.md](formats.md).",
        "",
    ]
    return page_part(point_tasks(), found, head, _section)


def _section(task: Task, found: Mapping[str, Any]) -> list[str]:
    rows = {name: found[name]["cell"] for name in POINTS if name in found}
    has_kl = any("kl" in row for row in rows.values())
    second, what = ("kl", "KL") if has_kl else ("sqnr_db", "SQNR dB")
    source = found["source"]
    lines = [
        f"### {task.title} (`{task.name}`): {task.primary}",
        "",
        f"{source['metrics'][task.primary]:.4g} in float32. {measured_on(rows.values())}",
        "",
        f"| format, solver | bits | {task.primary} | {what} | s |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        values = [figure(row.get(key)) for key in ("bits", "metric", second, "seconds")]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    refused = [f"- {name}: {row['refused']}" for name, row in rows.items() if "refused" in row]
    return [*lines, "", *refused, *([""] if refused else [])]
