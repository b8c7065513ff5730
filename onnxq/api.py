"""The public verbs as plain functions: what the CLI calls and what pipelines import."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.budget.account import ACCOUNT, with_bytes
from onnxq.budget.request import Request, chosen_policy, default_recipe
from onnxq.budget.run import quantize_to_budget
from onnxq.debugging import Debugged, debug
from onnxq.errors import UsageError
from onnxq.evaluate import Comparison, bench_models, compare_models
from onnxq.export.artifact import REPORT_NAME, Artifact, refuse_foreign, write_artifact
from onnxq.export.target import BuiltTarget, DeploymentTarget, Verdicts
from onnxq.export.targets import build_folder, target_with
from onnxq.foresight import bounded, plan
from onnxq.graph import load
from onnxq.graph.reading import find_model_file
from onnxq.numerics.threads import limited_threads
from onnxq.passes.base import PassReport, Progress, SiteReport, no_progress
from onnxq.passes.recipe import Recipe, load_recipe
from onnxq.passes.runner import Check, RecipeResult, run_recipe, without_extras
from onnxq.provenance import recorded, split_samples
from onnxq.quality import evaluate
from onnxq.report.making import Reported, report
from onnxq.runtime import random_samples
from onnxq.runtime.cache import file_hash
from onnxq.runtime.machine import machine
from onnxq.runtime.remote import is_remote
from onnxq.runtime.remote_output import copy_out, local_output, refuse_occupied_url
from onnxq.runtime.run_log import RunLog, stage
from onnxq.runtime.work_folder import WorkFolder
from onnxq.runtime.workers import Workers

__all__ = [
    "Debugged",
    "Quantized",
    "Reported",
    "bench",
    "build",
    "check",
    "compare",
    "debug",
    "evaluate",
    "load",
    "plan",
    "quantize",
    "report",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
    """A quantized model with the account of how it came about.

    Attributes:
        result: the rewritten model and what every pass did.
        original: the model it was made from.
        source: where that came from.
        held_back: inputs that calibration has not seen.
        artifact: the written artifact, when ``out`` was given.
        budget: what was asked and reached, site by site, when there was a budget: the content of
            ``onnxq-budget.json``.
        compares: whether `save` compares the artifact with the original on ``held_back``.
    """

    result: RecipeResult
    original: ir.Model
    source: Mapping[str, Any]
    held_back: Sequence[Mapping[str, np.ndarray]]
    artifact: Artifact | None = None
    budget: Mapping[str, Any] | None = None
    compares: bool = True

    @property
    def model(self) -> ir.Model:
        """The quantized model."""
        return self.result.model

    @property
    def reports(self) -> tuple[PassReport, ...]:
        """One report for each pass of the recipe, in order."""
        return tuple(step.report for step in self.result.steps)

    @property
    def quantized_sites(self) -> list[SiteReport]:
        """The sites that are stored in fewer bits."""
        return [site for report in self.reports for site in report.changed if site.format]

    @property
    def left_sites(self) -> list[SiteReport]:
        """The sites that quantizing passes left alone, each with its reason."""
        return [
            site
            for step in self.result.steps
            if step.step.promise.value == "close"
            for site in step.report.left
        ]

    def artifact_values(self) -> dict[str, Any]:
        """The report of the written artifact, and the account of its budget when it had one."""
        if self.artifact is None:
            return {}
        values = dict(self.artifact.report)
        if self.budget is not None:
            values["budget"] = with_bytes(self.budget, self.artifact.nbytes)
        return values

    def save(
        self, out: str | Path, *, companions: Path | None = None, overwrite: bool = False
    ) -> Artifact:
        """Write the artifact, verified; see `onnxq.export.artifact.write_artifact`."""
        account = self.budget
        accounts = {} if account is None else {ACCOUNT: lambda size: with_bytes(account, size)}
        return write_artifact(
            self.result,
            Path(out),
            original=self.original,
            source=self.source,
            held_back=self.held_back if self.compares else (),
            companions=companions,
            overwrite=overwrite,
            accounts=accounts,
        )


def quantize(
    model: Any,
    recipe: str | Path | Recipe | None = None,
    *,
    bits: float | None = None,
    size: str | int | None = None,
    latency: str | float | None = None,
    max_loss: str | float | None = None,
    policy: str | Path | None = None,
    menu: Sequence[str] = (),
    measure: str = "marginal",
    data: Any = None,
    out: str | Path | None = None,
    set: Sequence[str] = (),
    check: Check = "auto",
    overwrite: bool = False,
    tokenizer: str | Path | None = None,
    window: int = 512,
    limit: int | None = None,
    workers: int | Workers = 1,
    work: str | Path | None = None,
    log: str | Path | None = None,
    profile: str | Path | None = None,
    memory: str | int | None = None,
    progress: Progress = no_progress,
) -> Quantized:
    """Run a recipe on a model and, when ``out`` is given, write the verified artifact.

    Args:
        model: a path (file or folder), bytes, ``onnx_ir.Model`` or ``onnx.ModelProto``; left as
            it is.
        recipe: a preset's name, a TOML file, or a `Recipe`; ``int8`` when None, and with a budget
            ``budget`` (``budget_fast`` for latency).
        bits: a budget: mean bits per weight of the sites that the policy counts. The formats of
            the recipe's ``quantize_weights`` are then replaced by the best mix.
        size: a budget: bytes of the model files, or a text such as ``60MB``.
        latency: a budget: milliseconds of a run on the first sample here, or ``40ms``.
        max_loss: a loss, for which the smallest model is sought; or ``1%``, of a language model
            the rise of its perplexity. Not with other budgets.
        policy: which sites may take which formats, a name or a TOML file; see docs/budget.md.
        menu: formats for the sites that have no rule of their own in the policy.
        measure: how sensitivity is found, one of `onnxq.budget.sensitivity.MEASURES`.
        data: calibration inputs: an iterable of ``{input name: array}``, or a path that
            `onnxq.calibration.open_data` understands. A few samples are held back to compare
            the artifact on; promises are checked on the first ones. Without data both are done
            on random inputs.
        out: folder of the artifact, or a URL (see `onnxq.runtime.remote_output`); the files a
            runtime needs beside the model (tokenizer, ``genai_config.json``) are carried along from
            the model's folder.
        set: overrides, ``pass.key=value``.
        check: ``off`` skips running the model: for models larger than memory.
        overwrite: let ``out`` replace a folder that is not an onnxq artifact.
        tokenizer: for a text: ``tokenizer.json`` or its folder; the one beside the model or the
            text when None.
        window: for a text: tokens in a sample.
        limit: read at most this many samples, those held back among them; None reads all.
        workers: how many sites are solved at once, each in a process of its own; or where and with
            how many threads: kernels, BLAS, ONNX Runtime and workers share them. The codes do not
            depend on it.
        work: a folder that keeps every site that a solver has finished on calibration data: a run
            that was killed goes on from there, and another recipe finds what it shares. It stays
            until `onnxq clean` removes it. None keeps nothing.
        log: a file for what happens, one line of JSON for each event; see docs/long_runs.md.
        profile: a folder for the statistics of Python's profiler, one file for each stage.
        memory: a bound on memory, in bytes or as ``8GB``: by the plan of the run (`onnxq.plan`)
            so much is kept on disk, and so few sites are solved at once, that it holds. The model
            has the same bytes. Not with a budget.
        progress: called with (what, done, total).

    Raises:
        OnnxqError: with a sentence that says what, where, and what to do next.
    """
    request = Request.of(bits=bits, size=size, latency=latency, max_loss=max_loss)
    recipe = recipe or default_recipe(request)
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, set)
    rules = chosen_policy(request, policy, menu)
    if memory is not None and request is not None:
        raise UsageError("--memory is not for budgets yet: give one of the two.")
    url = str(out) if out is not None and is_remote(out) else None
    if url is not None:
        refuse_occupied_url(url, REPORT_NAME, overwrite)
        out = local_output(url)
    if out is not None:
        refuse_foreign(Path(out), overwrite)
    hands = workers if isinstance(workers, Workers) else Workers(count=workers)
    source = _source_of(model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(limited_threads(hands.threads))
        about = {"source": source, "recipe": chosen.name, "out": out, "machine": machine()}
        stack.enter_context(_run_log(log, profile, {**about, "workers": dataclasses.asdict(hands)}))
        with stage("open"):
            original = load(model)
            if data is not None:
                from onnxq.calibration import tokenizer_beside

                tokenizer = tokenizer or tokenizer_beside(model)
                source |= recorded(data, tokenizer, window, limit)
                data = _open(original, data, tokenizer, window, limit, chosen.extra_arrays)
            samples, held_back = _split(original, data, check)
            held_back = list(without_extras(held_back, chosen) or ())
        folder = Path(work) if work is not None and chosen.needs_samples else None
        how: dict[str, Any] = {
            "samples": samples,
            "check": check,
            "progress": progress,
            "workers": hands,
            "work": None if folder is None else stack.enter_context(WorkFolder(folder)),
        }
        if memory is not None:
            how |= bounded(original, chosen, samples, check=check, workers=hands, memory=memory)
        account: Mapping[str, Any] | None = None
        if request is None or rules is None:
            result = run_recipe(original, chosen, **how)
        else:
            unseen = held_back if data is not None else ()
            done = quantize_to_budget(
                original, chosen, request, rules, held_back=unseen, measure=measure, **how
            )
            result, account = done.result, done.account
        quantized = Quantized(
            result=result,
            original=original,
            source=source,
            held_back=held_back,
            compares=check == "auto",
            budget=account,
        )
        if out is None:
            return quantized
        artifact = quantized.save(out, companions=_folder_of(model), overwrite=overwrite)
        if url is not None:
            with stage("copy"):
                copy_out(artifact.folder, url, REPORT_NAME, progress)
    return dataclasses.replace(quantized, artifact=artifact)


def compare(
    reference: Any,
    candidate: Any,
    data: Any = None,
    *,
    layers: bool = False,
    progress: Progress = no_progress,
) -> Comparison:
    """Run two models on the same inputs and measure how far apart their outputs are.

    Args:
        reference: the model to measure against; anything `load` takes.
        candidate: the model to measure.
        data: as in `quantize`; random inputs when None.
        layers: also compare the inner values that have the same name in both.
        progress: called with (what, done, total); total 0 means unknown.
    """
    first, second = load(reference), load(candidate)
    samples = random_samples(first, 2) if data is None else list(_open(first, data))
    return compare_models(first, second, samples, layers=layers, progress=progress)


def bench(
    models: Sequence[str | Path],
    data: Any = None,
    *,
    rounds: int = 20,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> list[dict[str, Any]]:
    """Time models against one another on the same inputs, alternating; one row for each.

    Args:
        models: ONNX files or folders; the first is the one the others are compared with.
        data: as in `quantize`; random inputs when None.
        rounds: timed runs of each model.
        threads: threads inside an operator; None leaves the choice to the runtime.
        progress: called with (what, done, total).
    """
    first = load(models[0])
    samples = random_samples(first, 1) if data is None else list(_open(first, data))[:8]
    measured = bench_models(models, samples, rounds=rounds, threads=threads, progress=progress)
    return [row.to_dict() for row in measured]


def check(
    model: Any,
    target: str | DeploymentTarget,
    *,
    set: Sequence[str] = (),
    run: bool = False,
    data: Any = None,
) -> Verdicts:
    """What a target will do with each site of a model: by its rules, and by running it.

    Args:
        model: anything `load` takes.
        target: a name that ``onnxq targets`` lists, or a target made before.
        set: options of the target, ``key=value``.
        run: also ask the runtime which kernels run, and tell where the rules were wrong.
        data: what to run it on, as in `quantize`, of which the first sample is taken; random
            inputs when None.

    Raises:
        OnnxqError: an unknown target or option, or the runtime cannot be asked.
    """
    place = target_with(target, set)
    loaded = load(model)
    verdicts = place.check(loaded)
    if not run:
        return verdicts
    sample = None if data is None else next(iter(_open(loaded, data)))
    return dataclasses.replace(verdicts, observed=place.observe(loaded, verdicts, sample))


def build(
    artifact: str | Path,
    target: str | DeploymentTarget,
    out: str | Path,
    *,
    set: Sequence[str] = (),
    overwrite: bool = False,
) -> BuiltTarget:
    """Write a folder that runs on a target, verified there as far as this machine can.

    Args:
        artifact: an artifact or any model: its folder, or its ``.onnx`` file.
        target: as in `check`.
        out: the folder; the build that is in it is replaced, whole or not at all.
        set: options of the target, ``key=value``.
        overwrite: let ``out`` replace a folder with another model.

    Raises:
        OnnxqError: the target cannot run the model: what, where, what to do.
    """
    return build_folder(target_with(target, set), Path(artifact), Path(out), overwrite=overwrite)


def _open(
    model: ir.Model,
    data: Any,
    tokenizer: str | Path | None = None,
    window: int = 128,
    limit: int | None = None,
    extras: Collection[str] = (),
) -> Iterable[Mapping[str, np.ndarray]]:
    from onnxq.calibration import open_data

    return open_data(data, model, tokenizer=tokenizer, length=window, limit=limit, extras=extras)


def _split(
    model: ir.Model, samples: Iterable[Mapping[str, np.ndarray]] | None, check: Check
) -> tuple[Iterable[Mapping[str, np.ndarray]] | None, list[Mapping[str, np.ndarray]]]:
    """Calibration samples, and held-back ones from the end that calibration does not see."""
    if samples is None:
        return None, list(random_samples(model, 2, seed=1)) if check == "auto" else []
    return split_samples(samples)


def _run_log(
    log: str | Path | None, profile: str | Path | None, about: Mapping[str, Any]
) -> RunLog:
    return RunLog(
        None if log is None else Path(log),
        profile=None if profile is None else Path(profile),
        **about,
    )


def _source_of(model: Any) -> dict[str, Any]:
    if not isinstance(model, (str, Path)):
        return {"type": type(model).__name__}
    file = find_model_file(Path(model))
    return {"path": str(Path(model).absolute()), "sha256": {file.name: file_hash(file)}}


def _folder_of(model: Any) -> Path | None:
    if not isinstance(model, (str, Path)):
        return None
    path = Path(model)
    return path if path.is_dir() else path.parent
