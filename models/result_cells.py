"""What tables of results share: cells kept as JSON, distances from the float model, figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.evaluate import compare_models
from onnxq.models.task import Task

__all__ = ["Feeds", "distance", "figure", "keep", "mean"]

Feeds = Mapping[str, Sequence[Mapping[str, np.ndarray]]]
"""Inputs of each file of a task, by role."""

_EMBEDDERS = frozenset({"minilm"})
"""Models whose outputs are vectors: no probabilities, so no KL divergence."""


def keep(path: Path, value: Mapping[str, Any]) -> None:
    """Write a finished measurement at once: a killed run leaves no half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(value, indent=1, default=str))
    unfinished.replace(path)


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
