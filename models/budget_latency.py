"""Budgets of latency on MiniLM: what was asked, what a run takes, and how accurate it is.

Beside it stand int8 everywhere (the recipe ``budget_fast`` as it is) and the float model, timed in
turn with the float model in one process, on the first calibration sample. What is asked is a
share of the way from the time of int8 everywhere to that of the float model, both measured just
before.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq.budget.policy import load_policy
from onnxq.budget.request import Request
from onnxq.budget.run import quantize_to_budget
from onnxq.evaluate.latency import QuietTimer
from onnxq.evaluate.losses import LossMeter
from onnxq.evaluate.output_loss import find_output_loss
from onnxq.graph import load
from onnxq.models.minilm import MiniLm
from onnxq.models.result_cells import Feeds, keep, kept
from onnxq.passes.recipe import load_recipe
from onnxq.passes.runner import run_recipe

__all__ = ["SHARES", "LatencyBudgets", "latency_table"]

SHARES = (0.25, 0.5, 0.75)
"""Of the way from the time of int8 everywhere to that of float, asked as budgets."""

_SAMPLES = 16


class LatencyBudgets:
    """The measurements, in a folder; each budget is a cell that is measured once."""

    def __init__(self, work: Path) -> None:
        """Cells and the float model lie in ``work``."""
        self._task, self._work = MiniLm(), work
        work.mkdir(parents=True, exist_ok=True)

    def measure(self, shares: Sequence[float] = SHARES) -> None:
        """Ask for every budget whose cell is not there. Nothing else should run meanwhile."""
        missing = [share for share in shares if kept(self._path(share)) is None]
        if not missing:
            return
        built = self._task.built(self._work)
        calibration = self._task.calibration(built)["model"][:_SAMPLES]
        model, recipe = load(built["model"]), load_recipe("budget_fast")
        int8 = run_recipe(model, recipe, samples=calibration, check="off").model
        for share in missing:
            exact, fast = _times([model, int8], calibration[0])
            asked = fast + share * (exact - fast)
            keep(self._path(share), self._cell(model, int8, asked, calibration, built))

    def finished(self) -> list[dict[str, Any]]:
        """The cells that are there, in the order of `SHARES`."""
        found = [kept(self._path(share)) for share in SHARES]
        return [cell for cell in found if cell is not None]

    def _cell(
        self,
        model: ir.Model,
        int8: ir.Model,
        asked: float,
        calibration: Sequence[Mapping[str, Any]],
        built: Mapping[str, Path],
    ) -> dict[str, Any]:
        held_back: Feeds = self._task.held_back(built)
        done = quantize_to_budget(
            model,
            load_recipe("budget_fast"),
            Request(latency_ms=asked),
            load_policy("fast"),
            samples=calibration,
        )
        mixed = done.result.model
        times = _times([model, int8, mixed], calibration[0])
        meter = LossMeter(model, held_back["model"], find_output_loss(model))
        named = {"float": model, "int8": int8, "mix": mixed}
        return {
            "asked_ms": asked,
            "reached_ms": done.account["reached"]["latency_ms"],
            "reached_float_ms": done.account["reached"]["float_latency_ms"],
            "ms": dict(zip(named, times, strict=True)),
            "loss": {name: meter.excess(one) for name, one in named.items()},
            "metric": {
                name: self._task.evaluate({"model": one})[self._task.primary]
                for name, one in named.items()
            },
            "formats": Counter(site["format"] for site in done.account["sites"]),
        }

    def _path(self, share: float) -> Path:
        return self._work / f"latency-{share:g}.json"


def _times(models: Sequence[ir.Model], sample: Mapping[str, Any]) -> list[float]:
    """Milliseconds of a run of each, the machine at its quietest; the first is the float model."""
    timer = QuietTimer(models[0], sample, math.inf)
    ratios = [timer.milliseconds(one, 0.0) / timer.first_ms for one in models[1:]]
    return [timer.first_ms, *(timer.first_ms * ratio for ratio in ratios)]


def latency_table(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of the page; none without cells."""
    if not cells:
        return []
    lines = [
        "",
        f"**Budgets of latency**, all-MiniLM-L6-v2 on the first document ({cells[0]['machine']}). "
        "What is reached is as the run measured it, in brackets what the float model took at that "
        "time; the other times are from afterwards, in turn with the float model. Loss is the "
        "squared error of the outputs relative to their size, on documents that calibration has "
        "not seen, the figure in brackets the correlation with people on Lee50.",
        "",
        "| asked | reached (float) | mix | loss (Lee50) | afterwards | int8 everywhere | float |",
        "|---:|---:|---|---:|---:|---:|---:|",
    ]
    for cell in cells:
        ms, mix = cell["ms"], cell["formats"]
        asked, reached = cell["asked_ms"], cell["reached_ms"]
        formats = ", ".join(f"{count} × {name}" for name, count in mix.items())
        shown = {
            name: f"{cell['loss'][name]:.2e} ({cell['metric'][name]:.4f})"
            for name in ("mix", "int8")
        }
        lines.append(
            f"| {asked:.2f} ms | {reached:.2f} ms "
            f"({reached / asked - 1:+.0%}; {cell['reached_float_ms']:.1f} ms) "
            f"| {formats} | {shown['mix']} | {ms['mix']:.2f} ms | "
            f"{shown['int8']} in {ms['int8']:.2f} ms | {cell['metric']['float']:.4f} in "
            f"{ms['float']:.2f} ms |"
        )
    return lines
