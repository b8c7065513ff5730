"""Transforms by formats as markdown: what `onnxq.models.transform_results` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxq.models.result_cells import figure, page_part
from onnxq.models.result_store import measured_on
from onnxq.models.task import Task
from onnxq.models.transform_grid import FORMATS, MIN_TOKEN_DB, ROTATIONS, TRANSFORMS
from onnxq.models.transform_results import transform_tasks

__all__ = ["transform_part", "transform_section"]

_WRITERS = frozenset({"smollm2", "whisper-tiny-en"})
"""Models that write tokens: the divergence of their scores says more than that of a classifier that
is sure of nearly every image."""


def transform_part(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines of the part on transforms; none when no cell of any model is finished.

    Args:
        found: what `measure_transforms` returns, by name of the task.
    """
    head = [
        "## Transforms",
        "",
        "Rows: what is done before rounding; columns: weights and activations in bits. W8A8: int8 "
        "weights per channel, rounded to nearest, with activations in int8, a scale for each "
        "token or one calibrated scale for each tensor. W4 and W3: GPTQ with zero points in "
        "groups, a language head in 8 bits and its input in float. Static: where one scale would "
        f"leave less than {MIN_TOKEN_DB:g} dB of a product, mean over tokens, each token has its "
        "own; behind the brackets, how many sites kept one scale, of all. A8, A4: a scale for "
        "each token; in 4 bits with a zero point and 0.9 of the range, or what was learned of it. "
        "`smooth`: the best gain for a scale for each token, SmoothQuant with its exponent "
        "searched for one, AWQ where activations stay in float. KLT: principal components, then a "
        "Hadamard matrix. Each cell: the model's metric, and in brackets how far its outputs are "
        "from the float model's on held-back inputs. A dash: refused, with the reason below the "
        "table, or left out: beside the vision transformer, sets of some rotations are compared "
        "at W8A8 and W4A4, and maps that are learned at W4A4. See [transforms.md](transforms.md).",
        "",
    ]
    return page_part(transform_tasks(), found, head, transform_section)


def transform_section(task: Task, found: Mapping[str, Any]) -> list[str]:
    """The lines of one model: all rows by formats, then KLT against Hadamard."""
    formats = list(FORMATS[task.name])
    second = "kl" if task.name in _WRITERS else "sqnr_db"
    unit = "KL in nats" if second == "kl" else "SQNR in dB"
    source = found["source"]
    counts = ", ".join(f"{count} ({role})" for role, count in source["samples"].items())
    cells = [cell for name in TRANSFORMS for cell in found.get(name, {}).values()]
    lines = [
        f"### {task.title} (`{task.name}`): {task.primary}",
        "",
        f"{source['metrics'][task.primary]:.4g} in float32. Calibration samples: {counts}. In "
        f"brackets: {unit}. " + measured_on(cells),
        "",
        "| transforms | " + " | ".join(formats) + " |",
        "|---|" + "---:|" * len(formats),
    ]
    for name in TRANSFORMS:
        row = found.get(name, {})
        values = [_cell(row.get(fmt, {}), second) for fmt in formats]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return [*lines, "", *_rotations(task, found, formats), *_refusals(found)]


def _cell(cell: Mapping[str, Any], second: str) -> str:
    if "metric" not in cell:
        return "–"
    text = f"{figure(cell['metric'])} ({figure(cell.get(second))})"
    static = cell.get("static")
    return f"{text} {static['sites']}/{static['of']}" if static else text


def _rotations(task: Task, found: Mapping[str, Any], formats: Sequence[str]) -> list[str]:
    """KLT and Hadamard side by side: a row for each set of rotations, two figures a format."""
    key, what = ("metric", task.primary) if task.name in _WRITERS else ("sqnr_db", "SQNR in dB")
    has_any = any("metric" in c for k in found if "KLT" in k for c in found[k].values())
    if not has_any:
        return []
    lines = [
        f"KLT / Hadamard, {what}:",
        "",
        "| rotations | " + " | ".join(formats) + " |",
        "|---|" + "---:|" * len(formats),
    ]
    for which in ROTATIONS:
        pairs = [
            " / ".join(
                figure(found.get(f"{kind} {which}", {}).get(fmt, {}).get(key))
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
