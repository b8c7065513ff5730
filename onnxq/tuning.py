"""Search over options of a recipe: the outer choices, which no budget of formats decides.

A trial sets some options, runs the recipe (with a budget, if one is asked for) and measures the
loss on inputs that calibration has not seen. Where there are no more settings than trials all are
tried; else Optuna's sampler (TPE: Bergstra et al., NeurIPS 2011) chooses from earlier ones.
Finished trials are kept in a file, so that a killed search goes on.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxq.api import Quantized, quantize
from onnxq.errors import BudgetError, MissingDependency, OnnxqError, UsageError
from onnxq.evaluate.losses import LossMeter
from onnxq.evaluate.output_loss import find_output_loss
from onnxq.graph.weights import walk_weights, weight_tensor
from onnxq.passes.base import Progress, no_progress
from onnxq.runtime.cache import cache_folder
from onnxq.runtime.work_folder import hash_of

__all__ = ["Trial", "Tuned", "choices_of", "tune"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of the options.

    Attributes:
        number: in the order of the search.
        options: value by ``pass.key``.
        loss: on inputs that calibration has not seen; None when it was refused.
        nbytes: of all stored weights; None when it was refused.
        refused: why, as a sentence.
    """

    number: int
    options: Mapping[str, str]
    loss: float | None = None
    nbytes: int | None = None
    refused: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """All trials, and the best one run once more.

    Attributes:
        trials: finished ones, in their order.
        best: that of the least loss.
        quantized: what it gives.
        loss: name of the loss and its unit.
    """

    trials: tuple[Trial, ...]
    best: Trial
    quantized: Quantized
    loss: str


def choices_of(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Values by option of texts such as ``quantize_weights.solver=gptq|coordinate_descent``.

    Raises:
        UsageError: a text is not of that form, or has fewer than two values.
    """
    found = {}
    for text in texts:
        key, separator, values = text.partition("=")
        several = tuple(value.strip() for value in values.split("|") if value.strip())
        if not separator or "." not in key or len(several) < 2:
            raise UsageError(
                f"--try {text!r} is not of the form pass.key=first|second, for example "
                "quantize_weights.solver=gptq|coordinate_descent."
            )
        found[key.strip()] = several
    if not found:
        raise UsageError("There is nothing to try: give --try pass.key=first|second.")
    return found


def tune(
    model: Any,
    recipe: str | Path | None,
    choices: Mapping[str, Sequence[str]],
    *,
    data: Any,
    trials: int = 12,
    out: str | Path | None = None,
    storage: str | Path | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
    **how: Any,
) -> Tuned:
    """Try options of a recipe, and quantize with the best.

    Args:
        model: as in `onnxq.quantize`.
        recipe: a preset or a TOML file.
        choices: values by ``pass.key``, as texts that a ``set`` would take.
        data: as in `onnxq.quantize`; the held-back samples judge.
        trials: how many at most, those of an earlier run among them.
        out: folder of the artifact of the best one.
        storage: file of finished trials; one in the cache, by model, recipe and choices, when None.
        seed: of the sampler.
        progress: called with (what, done, total).
        how: further arguments of `onnxq.quantize`, such as ``bits``.

    Raises:
        MissingDependency: optuna is not installed.
        BudgetError: every trial was refused.
        OnnxqError: as `onnxq.quantize`, of the best one.
    """
    if importlib.util.find_spec("optuna") is None:
        raise MissingDependency("optuna", "tune", "Tuning the options of a recipe")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place = Path(storage) if storage is not None else _default_storage(model, recipe, choices, how)
    place.parent.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(place))
    study = optuna.create_study(
        study_name="onnxq",
        storage=optuna.storages.JournalStorage(backend),
        sampler=optuna.samplers.TPESampler(seed=seed),
        load_if_exists=True,
    )
    names: list[str] = []

    def objective(trial: Any) -> float:
        options = {key: trial.suggest_categorical(key, list(choices[key])) for key in choices}
        before = [one for one in _finished(study) if one.options == options]
        if before and before[0].loss is not None:
            trial.set_user_attr("nbytes", before[0].nbytes)
            return before[0].loss
        try:
            done = _run(model, recipe, options, data, {**how, "check": "off"}, None)
            loss, unit = _judged(done)
        except OnnxqError as error:
            trial.set_user_attr("refused", str(error))
            raise optuna.TrialPruned from error
        names.append(unit)
        trial.set_user_attr("nbytes", _stored(done))
        return loss

    settings = [dict(zip(choices, s, strict=True)) for s in itertools.product(*choices.values())]
    for setting in settings if len(settings) <= trials else ():
        study.enqueue_trial(setting, skip_if_exists=True)
    for number in range(len(_finished(study)), trials):
        progress("trials", number, trials)
        study.optimize(objective, n_trials=1)
    progress("trials", trials, trials)
    found = _finished(study)
    able = [trial for trial in found if trial.loss is not None]
    if not able:
        raise BudgetError(f"Every trial was refused; the first: {found[0].refused}")
    best = min(able, key=lambda trial: (trial.loss, trial.nbytes))
    quantized = _run(model, recipe, best.options, data, {**how, "progress": progress}, out)
    unit = names[0] if names else _judged(quantized)[1]
    return Tuned(trials=tuple(found), best=best, quantized=quantized, loss=unit)


def _default_storage(
    model: Any, recipe: Any, choices: Mapping[str, Sequence[str]], how: Mapping[str, Any]
) -> Path:
    name = hash_of(str(model), str(recipe), dict(choices), dict(how))
    return cache_folder() / "tune" / f"{name[:16]}.log"


def _run(
    model: Any,
    recipe: str | Path | None,
    options: Mapping[str, str],
    data: Any,
    how: Mapping[str, Any],
    out: str | Path | None,
) -> Quantized:
    settings = (*how.get("set", ()), *(f"{key}={value}" for key, value in options.items()))
    return quantize(model, recipe, data=data, out=out, **{**how, "set": settings})


def _judged(done: Quantized) -> tuple[float, str]:
    loss = find_output_loss(done.original)
    meter = LossMeter(done.original, list(done.held_back), loss)
    return meter.excess(done.model), loss.unit


def _stored(done: Quantized) -> int:
    return sum(int(weight_tensor(value).nbytes) for _, value in walk_weights(done.model))


def _finished(study: Any) -> list[Trial]:
    """Trials that ended, in their order; one that was killed on the way is left out."""
    return [
        Trial(
            number=trial.number,
            options=dict(trial.params),
            loss=trial.value,
            nbytes=trial.user_attrs.get("nbytes"),
            refused=trial.user_attrs.get("refused"),
        )
        for trial in study.trials
        if trial.state.is_finished() and trial.params
    ]
