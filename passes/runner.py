"""Run a recipe on a model: clone, then each pass in turn with its stage and promise checked."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxq.errors import CalibrationError, OnnxqError
from onnxq.graph import check_finite
from onnxq.graph.scratch import Scratch
from onnxq.graph.stage import Stage, check_stage, clone_model, mark_stage, require_stage
from onnxq.passes.base import Context, Pass, PassReport, Progress, Samples, no_progress
from onnxq.passes.origin import after, first_origin
from onnxq.passes.promise import Kept, PromiseKeeper
from onnxq.passes.recipe import Recipe
from onnxq.passes.site_outliers import OutlierShift, OutlierWatch
from onnxq.passes.site_patterns import name_roles
from onnxq.runtime import random_samples
from onnxq.runtime.memory_settings import MemorySettings
from onnxq.runtime.run_log import note, stage
from onnxq.runtime.work_folder import WorkFolder
from onnxq.runtime.workers import Workers

Check = Literal["auto", "off"]

_SAMPLES_CHECKED = 2
"""Inputs each promise is checked on, the first of the calibration data or random ones; and, of the
data, outliers are measured on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult:
    """One pass that ran.

    Attributes:
        step: the pass as configured.
        report: what it did, site by site.
        kept: the checked promise; None when nothing was modified or checks are off.
        seconds: wall time of the pass, its check not counted.
        outliers: those of every site before and after a pass that moves them; a clause when they
            could not be measured; None for other passes, or when checks are off.
    """

    step: Pass
    report: PassReport
    kept: Kept | None
    seconds: float
    outliers: OutlierShift | str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``onnxq.json``."""
        kept = None
        if self.kept is not None:
            finite = np.isfinite(self.kept.sqnr_db)
            kept = {
                "promise": self.kept.promise.value,
                "max_error": self.kept.max_error,
                "sqnr_db": round(self.kept.sqnr_db, 2) if finite else None,
                "samples": self.kept.samples,
            }
        shift = self.outliers
        return {
            "use": self.step.key(),
            "options": self.step.options(),
            "modified": self.report.modified,
            "seconds": round(self.seconds, 3),
            "kept": kept,
            "notes": [*self.report.notes, *([shift] if isinstance(shift, str) else [])],
            "sites": [dataclasses.asdict(site) for site in self.report.sites],
            "outliers": shift.to_dict() if isinstance(shift, OutlierShift) else None,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeResult:
    """The rewritten model and what every pass did."""

    model: ir.Model
    recipe: Recipe
    steps: tuple[StepResult, ...]


def run_recipe(
    model: ir.Model,
    recipe: Recipe,
    *,
    samples: Samples | None = None,
    check: Check = "auto",
    progress: Progress = no_progress,
    workers: Workers | None = None,
    work: WorkFolder | None = None,
    memory: MemorySettings | None = None,
) -> RecipeResult:
    """Run every pass of ``recipe`` on a clone of ``model``; the model given is left as it is.

    Args:
        model: the model to start from.
        recipe: what to do.
        samples: calibration inputs; also the real inputs that promises are checked on.
        check: ``off`` skips the promise checks: for models larger than memory.
        progress: called as work proceeds.
        workers: solve sites that do not depend on each other; one at a time when None.
        work: finds sites that an earlier run has solved, and keeps those of this one.
        memory: what is kept in memory and what on disk; the result does not depend on it.

    Raises:
        CalibrationError: a pass needs samples and there are none.
        UnsupportedGraph: a weight holds NaN or infinity; or a pass cannot work on the model, and
            the message says what to run first.
        BrokenPromise: a pass changed the outputs more than it promised.
    """
    if recipe.needs_samples and samples is None:
        who = next(step.key() for step in recipe.steps if step.needs_samples)
        raise CalibrationError(
            f"Recipe {recipe.name!r} needs calibration data for its pass {who!r}: give some "
            "(a folder of .npz files, texts, images or audio), or choose a weight-only recipe."
        )
    if check == "auto":  # a quantizing pass also refuses NaN, when it comes to the weight
        check_finite(model)
    model = clone_model(model)
    plain = without_extras(samples, recipe)
    keeper = PromiseKeeper(model, _inputs(model, plain)) if check == "auto" else None
    watch = _watch(recipe, plain) if check == "auto" else None
    steps: list[StepResult] = []
    workers, memory = workers or Workers(), memory or MemorySettings()
    origin = "" if work is None else first_origin(model, samples, [workers.threads])
    for number, step in enumerate(recipe.steps):
        progress(f"pass {step.key()}", number, len(recipe.steps))
        given = samples if step.extra_arrays else plain
        context = Context(
            samples=given,
            progress=progress,
            scratch=Scratch(memory.scratch),
            workers=workers,
            work=work,
            memory=memory,
            origin=origin,
        )
        steps.append(_run_step(step, model, context, keeper, watch))
        origin = after(origin, step)
    progress("passes", len(recipe.steps), len(recipe.steps))
    return RecipeResult(model=model, recipe=recipe, steps=tuple(steps))


def without_extras(samples: Samples | None, recipe: Recipe) -> Samples | None:
    """The model inputs alone, when samples carry more for a pass of the recipe."""
    if samples is None or not recipe.extra_arrays:
        return samples
    return _Inputs(samples, recipe.extra_arrays)


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """Samples without some of their arrays, read again at every pass over them."""

    samples: Samples
    left_out: frozenset[str]

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        for sample in self.samples:
            yield {name: array for name, array in sample.items() if name not in self.left_out}


def _inputs(model: ir.Model, samples: Samples | None) -> list[Mapping[str, np.ndarray]]:
    if samples is not None:
        return list(itertools.islice(iter(samples), _SAMPLES_CHECKED))
    return list(random_samples(model, _SAMPLES_CHECKED))


def _watch(recipe: Recipe, samples: Samples | None) -> OutlierWatch | None:
    """What measures outliers, when a pass of the recipe moves them."""
    if not any(_moves_outliers(step) for step in recipe.steps):
        return None
    return OutlierWatch(list(itertools.islice(iter(samples or ()), _SAMPLES_CHECKED)))


def _moves_outliers(step: Pass) -> bool:
    return step.moves_outliers or step.gives_stage is Stage.TRANSFORMED


def _run_step(
    step: Pass,
    model: ir.Model,
    context: Context,
    keeper: PromiseKeeper | None,
    watch: OutlierWatch | None,
) -> StepResult:
    who = step.key()
    require_stage(model, step.needs_stage, who)
    acting = name_roles(step, model)
    if watch is not None and _moves_outliers(step):
        watch.before(model)
    start = time.perf_counter()
    try:
        with stage(who):
            acting.requires(model)
            report = acting.call(model, context)
            for site in report.left:
                note("site left", site=site.site, reason=site.reason)
    except OnnxqError as error:
        error.add_note(f"(while running the pass {who})")
        raise
    seconds = time.perf_counter() - start
    if step.gives_stage is not None:
        mark_stage(model, step.gives_stage)
    check_stage(model)
    kept = None
    if keeper is not None and report.modified:
        kept = keeper.check(who, step.promise, model, moved=report.moved_outputs)
    outliers = None
    if watch is not None and report.modified:
        if _moves_outliers(step):
            outliers = watch.after(model)
        else:
            watch.forget()
    return StepResult(step=step, report=report, kept=kept, seconds=seconds, outliers=outliers)
