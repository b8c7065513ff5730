"""Quantize to a budget: plan, run, look at what came out, and correct the plan where it was wrong.

The passes of the recipe before its last ``quantize_weights`` run once. Then sensitivity is measured
on the model as it stands there, a mix is chosen, and the row is run with the mix as its
``overrides``: what comes out is an ordinary run of a recipe, which says how to get it again.
"""

from __future__ import annotations

import dataclasses
import glob
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.budget.account import account_of, uniform_mixes
from onnxq.budget.menu import FLOAT
from onnxq.budget.plan import Problem, Solution, fastest_mix, retimed, smallest_mix, solve
from onnxq.budget.policy import Policy
from onnxq.budget.problem import PlannedModel, planned
from onnxq.budget.request import Request
from onnxq.errors import BudgetError, RecipeError
from onnxq.evaluate.latency import QuietTimer
from onnxq.evaluate.losses import LossMeter
from onnxq.graph import save
from onnxq.passes.base import Progress, Samples, no_progress
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.recipe import Recipe
from onnxq.passes.runner import Check, RecipeResult, run_recipe

__all__ = ["BudgetedRun", "quantize_to_budget"]

_TRIES = 8
_TIGHTER = 0.8
"""Of a loss that is allowed, when the mix for it is the one that lost too much."""
_ENOUGH = 0.9
"""Of a budget of latency that a mix should use: below, the plan is corrected once more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BudgetedRun:
    """What came out.

    Attributes:
        result: as `onnxq.passes.runner.run_recipe` gives it, of the recipe with the mix in it.
        account: the content of ``onnxq-budget.json``; its ``bytes`` are to be set once written.
    """

    result: RecipeResult
    account: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Trial:
    """A mix that was run, and what was measured of it."""

    solution: Solution
    problem: Problem
    result: RecipeResult
    reached: Mapping[str, Any]
    fits: bool


def quantize_to_budget(
    model: ir.Model,
    recipe: Recipe,
    request: Request,
    policy: Policy,
    *,
    samples: Samples | None,
    held_back: Sequence[Mapping[str, np.ndarray]] = (),
    measure: str = "marginal",
    check: Check = "auto",
    progress: Progress = no_progress,
    **how: Any,
) -> BudgetedRun:
    """Run a recipe with the best mix of formats for a budget.

    Args:
        model: the model; left as it is.
        recipe: holds a ``quantize_weights`` row, whose formats are replaced by the mix.
        request: the budget.
        policy: which sites may take which formats.
        samples: calibration inputs; None where neither recipe nor measure needs any.
        held_back: inputs that calibration has not seen, to measure the loss on.
        measure: of sensitivity, see `onnxq.budget.sensitivity`.
        check: as in `run_recipe`.
        progress: called as work proceeds.
        how: further arguments of `run_recipe`: its workers and its folder of finished sites.

    Raises:
        RecipeError: the recipe has no ``quantize_weights`` row.
        BudgetError: the budget cannot be met; the sentence says the least that can.
        OnnxqError: as `run_recipe`.
    """
    at = _row_of(recipe)
    step = recipe.steps[at]
    before = dataclasses.replace(recipe, steps=recipe.steps[:at])
    how = {**how, "samples": samples, "check": check, "progress": progress}
    first = run_recipe(model, before, **how)
    assert isinstance(step, QuantizeWeights)
    plan = planned(
        first.model, step, request, policy, samples=samples, measure=measure, progress=progress
    )
    meter = None
    if held_back and check == "auto":
        meter = LossMeter(model, held_back, plan.loss)
    rest = recipe.steps[at + 1 :]

    def run(formats: Mapping[str, str]) -> RecipeResult:
        mixed = with_mix(plan.step, formats)
        return run_recipe(first.model, dataclasses.replace(recipe, steps=(mixed, *rest)), **how)

    trial = _best(plan, request, run, first.model, meter, samples)
    steps = (*first.steps, *trial.result.steps)
    made = dataclasses.replace(recipe, steps=tuple(one.step for one in steps))
    return BudgetedRun(
        result=RecipeResult(model=trial.result.model, recipe=made, steps=steps),
        account=account_of(trial.problem, request, trial.solution, trial.reached),
    )


def _row_of(recipe: Recipe) -> int:
    rows = [at for at, step in enumerate(recipe.steps) if isinstance(step, QuantizeWeights)]
    if not rows:
        raise RecipeError(
            f"Recipe {recipe.name!r} has no quantize_weights row, and a budget is spent on the "
            "formats of one: choose a recipe that stores weights in few bits, such as 'budget'."
        )
    return rows[-1]


def with_mix(step: QuantizeWeights, formats: Mapping[str, str]) -> QuantizeWeights:
    """The pass with the format of each site among its overrides, before those it has."""
    mix = {glob.escape(site): fmt for site, fmt in formats.items()}
    return dataclasses.replace(step, overrides={**mix, **step.overrides})


def _best(
    plan: PlannedModel,
    request: Request,
    run: Any,
    model: ir.Model,
    meter: LossMeter | None,
    samples: Samples | None,
) -> _Trial:
    """Run mixes until one is within the budget as measured, the plan corrected in between."""
    problem, target = plan.problem, request.allowed_loss(plan.loss.kind)
    allowed, trials = target, list[_Trial]()
    timer = None
    if request.latency_ms is not None and samples is not None:
        timer = QuietTimer(model, next(iter(samples)), problem.float_ms or math.inf)
    for _ in range(_TRIES):
        fitting = [trial for trial in trials if trial.fits]
        try:
            if timer is not None and not trials and (request.bits, request.size) == (None, None):
                solution = _best_format(problem)
            else:
                guesses = 1 if timer is None else 2
                solution = _solved(problem, request, allowed, is_guess=len(trials) < guesses)
        except BudgetError:
            if not fitting and (timer is None or not trials):
                raise
            break  # what was measured is told, and not what is predicted from it
        if timer is not None and fitting:
            least = min(trial.solution.loss for trial in fitting)
            if solution.loss >= least:
                break
        if any(solution.formats == trial.solution.formats for trial in trials):
            if target is None or meter is None:
                break
            allowed = _TIGHTER * (allowed or target)  # until it is another mix
            continue
        result = run(solution.formats)
        trial = _tried(plan, problem, request, solution, result, meter, timer)
        trials.append(trial)
        if target is not None and meter is not None:
            found = trial.reached["measured_loss"]
            if found <= target:
                break
            allowed = (allowed or target) * max(0.1, 0.9 * target / found)
        elif trial.fits and (timer is None or (len(trials) > 1 and _is_used(trial, request))):
            break
        problem = trial.problem
    fitting = [one for one in trials if one.fits]
    if not fitting:
        if timer is not None:
            trials.sort(key=lambda one: one.reached["latency_ms"], reverse=True)
        raise BudgetError(_missed(request, trials[-1]))
    if request.latency_ms is not None:
        return min(fitting, key=lambda one: one.solution.loss)
    return fitting[-1]


def _is_used(trial: _Trial, request: Request) -> bool:
    """Whether a run takes nearly as long as it may."""
    return bool(trial.reached["latency_ms"] >= _ENOUGH * (request.latency_ms or 0.0))


def _best_format(problem: Problem) -> Solution:
    """The format everywhere that loses least, float apart: what mixes are to be better than.

    A run of it also tells how far the times of operators alone can be trusted.
    """
    mixes = [mix for name, mix in uniform_mixes(problem).items() if name != FLOAT]
    if not mixes:
        return solve(problem, Request(latency_ms=fastest_mix(problem)))
    return min(mixes, key=lambda mix: mix.loss)


def _solved(
    problem: Problem, request: Request, allowed: float | None, *, is_guess: bool
) -> Solution:
    """The best mix; what is only guessed refuses no size or time before it is measured."""
    try:
        return solve(problem, request, allowed_loss=allowed)
    except BudgetError:
        if request.size is None and (request.latency_ms is None or not is_guess):
            raise
    if is_guess:
        if request.latency_ms is not None:
            request = dataclasses.replace(request, latency_ms=fastest_mix(problem))
        return solve(dataclasses.replace(problem, fixed_bytes=problem.sure_bytes), request)
    # What a file holds beside weights differs from mix to mix: the smallest has the last word.
    return solve(problem, dataclasses.replace(request, size=smallest_mix(problem)))


def _tried(
    plan: PlannedModel,
    problem: Problem,
    request: Request,
    solution: Solution,
    result: RecipeResult,
    meter: LossMeter | None,
    timer: QuietTimer | None,
) -> _Trial:
    """Measure a mix that was run; the problem is corrected by what was found."""
    reached: dict[str, Any] = {}
    fits = True
    if meter is not None:
        reached["measured_loss"] = meter.excess(result.model)
        target = request.allowed_loss(plan.loss.kind)
        fits = target is None or reached["measured_loss"] <= target
    if request.size is not None:
        written = written_bytes(result.model)
        reached["bytes"] = written
        fits = fits and written <= request.size
        problem = dataclasses.replace(problem, fixed_bytes=written - solution.nbytes)
    if request.latency_ms is not None and timer is not None:
        mix_ms = timer.milliseconds(result.model, request.latency_ms)
        reached["latency_ms"], reached["float_latency_ms"] = mix_ms, timer.first_ms
        fits = fits and mix_ms <= request.latency_ms
        problem = retimed(problem, solution, mix_ms, timer.first_ms)
    return _Trial(solution=solution, problem=problem, result=result, reached=reached, fits=fits)


def _missed(request: Request, trial: _Trial) -> str:
    reached = trial.reached
    if request.size is not None and reached["bytes"] > request.size:
        return (
            f"The smallest file that was tried takes {reached['bytes']} bytes, and {request.size} "
            "were asked for: ask for a little more, or allow smaller formats."
        )
    if request.latency_ms is not None:
        return (
            f"The fastest mix that was tried takes {reached['latency_ms']:.3g} ms here, and "
            f"{request.latency_ms:.3g} were asked for: ask for more, or allow faster formats."
        )
    return (
        f"The best of the mixes tried loses {reached['measured_loss']:.4g} on inputs that "
        f"calibration has not seen, and {request.max_loss:.4g} was allowed: allow more, or larger "
        "formats (--menu with int8_g64 or float)."
    )


def written_bytes(model: ir.Model) -> int:
    """Bytes of the files that `onnxq.graph.save` writes for a model, by writing them."""
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        save(model, Path(folder) / "model.onnx")
        return sum(path.stat().st_size for path in Path(folder).iterdir())
