"""The verb ``onnxq.plan``: what a run will take, without running it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.budget.request import parse_size
from onnxq.graph import load
from onnxq.passes.recipe import Recipe, load_recipe
from onnxq.passes.runner import Check
from onnxq.planning.limits import plan_within
from onnxq.planning.outline import Outline, outline_of
from onnxq.planning.results import Plan, PlannedStage
from onnxq.planning.sizes import Sizes
from onnxq.provenance import split_samples
from onnxq.runtime.run_log import note
from onnxq.runtime.workers import Workers

__all__ = ["Plan", "PlannedStage", "bounded", "outlined", "plan", "planned"]

_SEEN = 1024
"""More samples than any pass looks at by default."""
_ASSUMED = 128
"""Samples where none are given and no limit is: what solvers look at by default."""


def plan(
    model: Any,
    recipe: str | Path | Recipe = "int8",
    *,
    data: Any = None,
    set: Sequence[str] = (),
    check: Check = "auto",
    tokenizer: str | Path | None = None,
    window: int = 512,
    limit: int | None = None,
    workers: int = 1,
    memory: str | int | None = None,
) -> Plan:
    """Foresee memory, time and disk of `onnxq.quantize`, stage by stage, from shapes alone.

    Args:
        model: as for `onnxq.quantize`; no weight is read, and weights may have no content yet.
        recipe: a preset's name, a TOML file, or a `Recipe`.
        data: calibration inputs, of which only the shapes count. Without, `limit` samples (128) of
            `window` tokens are assumed where a pass needs some.
        set: overrides, ``pass.key=value``.
        check: ``off`` as for a run that does not check its passes and the artifact.
        tokenizer: for a text, as for `onnxq.quantize`.
        window: for a text: tokens in a sample.
        limit: read at most this many samples.
        workers: how many sites are solved at once.
        memory: a bound on memory, in bytes or as ``8GB``: the plan is then that of a run with it.

    Raises:
        OnnxqError: a pass refuses the model; nothing fits the bound; with what to do.
    """
    outline = outlined(
        model,
        recipe,
        data=data,
        set=set,
        check=check,
        tokenizer=tokenizer,
        window=window,
        limit=limit,
    )
    return planned(outline, workers, memory)


def outlined(
    model: Any,
    recipe: str | Path | Recipe,
    *,
    data: Any,
    set: Sequence[str],
    check: Check,
    tokenizer: str | Path | None,
    window: int,
    limit: int | None,
) -> Outline:
    """What `plan` goes through once, however many workers and bounds are planned for then."""
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, set)
    original = load(model)
    if data is not None:
        from onnxq.calibration import open_data, tokenizer_beside

        data = open_data(
            data,
            original,
            tokenizer=tokenizer or tokenizer_beside(model),
            length=window,
            limit=limit,
            extras=chosen.extra_arrays,
        )
        data, _ = split_samples(data)
    return outline_of(original, chosen, _sizes(original, data, window, limit), check=check)


def planned(outline: Outline, workers: int, memory: str | int | None) -> Plan:
    """The plan for a number of workers, within a bound on memory when there is one."""
    if memory is None:
        return outline.plan(workers=workers)
    return plan_within(outline, parse_size(memory, "--memory"), workers)


def bounded(
    model: ir.Model,
    recipe: Recipe,
    samples: Iterable[Mapping[str, np.ndarray]] | None,
    *,
    check: Check,
    workers: Workers,
    memory: str | int,
) -> dict[str, Any]:
    """Workers and settings with which `onnxq.passes.runner.run_recipe` stays within a bound.

    Raises:
        UsageError: nothing fits, or the run cannot be foreseen.
    """
    outline = outline_of(model, recipe, _sizes(model, samples, 1, None), check=check)
    fits = plan_within(outline, parse_size(memory, "--memory"), workers.count)
    note("planned", memory=fits.memory, workers=fits.workers, **dataclasses.asdict(fits.settings))
    return {"workers": dataclasses.replace(workers, count=fits.workers), "memory": fits.settings}


def _sizes(
    model: ir.Model,
    samples: Iterable[Mapping[str, np.ndarray]] | None,
    window: int,
    limit: int | None,
) -> Sizes:
    if samples is None:
        return Sizes.assumed(model, min(limit or _ASSUMED, _ASSUMED), window)
    return Sizes.of(itertools.islice(iter(samples), _SEEN))
