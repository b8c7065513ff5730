"""Budgets of latency on MiniLM: what was asked, what a run takes, and how accurate it is.

Beside it stand int8 everywhere (the recipe ``budget_fast`` as it is) and the float model, all three
timed alternately in one process, on the first calibration sample. What is asked is a share of the
way from the time of int8 everywhere to that of the float model, both measured just before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq.budget.policy import load_policy
from onnxq.budget.request import Request
from onnxq.budget.run import quantize_to_budget
from onnxq.evaluate.latency import latency
from onnxq.evaluate.losses import LossMeter
from onnxq.evaluate.output_loss import find_output_loss
from onnxq.graph import load
from onnxq.models.minilm import MiniLm
from onnxq.models.result_cells import Feeds, keep, kept
from onnxq.passes.recipe import load_recipe
from onnxq.passes.runner import run_recipe

__all__ = ["SHARES", "LatencyBudgets", "latency_table"]

SHARES = (0.0, 0.25, 0.5)
"""Of the way from the time of int8 everywhere to that of float, asked as budgets."""

_SAMPLES = 16
_ROUNDS = 60


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
            times = _times([int8, model], calibration[0])
            asked = times[0] + share * (times[1] - times[0])
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
            "said_ms": done.account["reached"]["latency_ms"],
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
    """Milliseconds of a run of each, the medians of alternate runs."""
    found = latency(models, [sample], rounds=_ROUNDS)
    return [1e3 * spread.median for spread in found.spreads]


def latency_table(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of the page; none without cells."""
    if not cells:
        return []
    lines = [
        "",
        f"**Budgets of latency**, all-MiniLM-L6-v2 on the first document ({cells[0]['machine']}), "
        "all forms timed alternately; loss is the squared error of the outputs relative to their "
        "size, on documents that calibration has not seen, the figure in brackets the correlation "
        "with people on Lee50.",
        "",
        "| asked | a run of the mix | mix | loss (Lee50) | int8 everywhere | float |",
        "|---:|---:|---|---:|---:|---:|",
    ]
    for cell in cells:
        ms, mix = cell["ms"], cell["formats"]
        formats = ", ".join(f"{count} × {name}" for name, count in mix.items())
        shown = {
            name: f"{cell['loss'][name]:.2e} ({cell['metric'][name]:.4f})"
            for name in ("mix", "int8")
        }
        lines.append(
            f"| {cell['asked_ms']:.2f} ms | {ms['mix']:.2f} ms "
            f"({ms['mix'] / cell['asked_ms'] - 1:+.0%}) | {formats} | {shown['mix']} | "
            f"{shown['int8']} in {ms['int8']:.2f} ms | {cell['metric']['float']:.4f} in "
            f"{ms['float']:.2f} ms |"
        )
    return lines
