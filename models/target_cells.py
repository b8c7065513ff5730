"""One cell of ``docs/targets.md``: an artifact built for a target, run there, and compared.

The artifact of each form is made once for all targets. It is about what a target takes, not about
accuracy (see docs/results.md): a few calibration samples, no site left in float for its noise.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from onnxq.errors import OnnxqError
from onnxq.evaluate.deviation import DeviationSums
from onnxq.export.artifact import MODEL_NAME, REPORT_NAME, write_artifact
from onnxq.export.target import DeploymentTarget
from onnxq.export.targets import build_folder
from onnxq.graph import load
from onnxq.models.registry import task
from onnxq.models.result_cells import keep
from onnxq.models.task import Feeds, Task
from onnxq.passes.recipe import Recipe, load_recipe
from onnxq.passes.runner import run_recipe
from onnxq.runtime import open_session

__all__ = ["FORMS", "Form", "make_artifacts", "measure_cell"]

_SAMPLES = 4
_INPUTS = 2
"""Held-back inputs that a built folder is run on; under emulation, of arm64, only one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """One way to quantize, and where it is meant to run.

    Attributes:
        recipe: name of the recipe; None leaves the model as it comes.
        targets: the targets that it is natural for.
        settings: overrides of the recipe.
        models: names of the tasks; empty means all.
    """

    recipe: str | None
    targets: tuple[str, ...]
    settings: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


_ONNXRUNTIME = ("onnxruntime-cpu", "onnxruntime-cuda", "mobile", "arm64", "web")
_GENERATING = ("onnxruntime-cpu", "onnxruntime-cuda", "genai", "arm64", "web")
_DECODERS = ("smollm2", "glassllm")
_QUANTIZED = ("quire-tagger",)
"""Models that come quantized: recipes refuse them."""

FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "as it comes": Form(
            recipe=None, targets=(*_ONNXRUNTIME, "tensorrt", "tensorrt-rtx"), models=_QUANTIZED
        ),
        "int8_dynamic": Form(recipe="int8_dynamic", targets=(*_ONNXRUNTIME, "genai")),
        "int8_static": Form(
            recipe="int8_static",
            targets=_ONNXRUNTIME,
            settings=("insert_qdq.min_output_db=0",),
        ),
        "int4": Form(recipe="int4", targets=(*_ONNXRUNTIME, "genai")),
        "w4a8": Form(recipe="w4a8", targets=_GENERATING, models=_DECODERS),
        "lut2_f16": Form(
            recipe="int4",
            targets=_GENERATING,
            settings=("quantize_weights.format=lut2_f16",),
            models=_DECODERS,
        ),
        "int8_tensorrt": Form(
            recipe="int8_tensorrt",
            targets=("tensorrt", "tensorrt-rtx"),
            settings=("insert_qdq.min_output_db=0", "insert_qdq.correct_bias=false"),
        ),
        "int4_tensorrt": Form(recipe="int4_tensorrt", targets=("tensorrt", "tensorrt-rtx")),
    }
)
"""The rows of each model."""

_ONLY = MappingProxyType({"genai": _DECODERS})
"""Models that a target is about; all where it is not named."""


def forms_of(name: str) -> dict[str, tuple[str, ...]]:
    """The forms of a model, each with the targets that it is built for."""
    return {
        key: tuple(t for t in form.targets if name in _ONLY.get(t, (name,)))
        for key, form in FORMS.items()
        if (name in form.models if form.models else name not in _QUANTIZED)
    }


def make_artifacts(name: str, form: str, work: Path) -> None:
    """Quantize every file of a model, where that is not done; a refusal is kept as its sentence.

    Args:
        name: of the task.
        form: see `FORMS`.
        work: folder of the model.
    """
    one, chosen = task(name), FORMS[form]
    recipe = Recipe(name=form, steps=())
    if chosen.recipe is not None:
        recipe = load_recipe(chosen.recipe, chosen.settings)
    built = one.built(work)
    calibration: Mapping[str, Sequence[Feeds]] = {}
    if recipe.needs_samples and not all(_is_made(work, form, role) for role in built):
        calibration = one.calibration(built)
    for role, path in built.items():
        if _is_made(work, form, role):
            continue
        original = load(path)
        samples = calibration[role][:_SAMPLES] if calibration else None
        try:
            write_artifact(
                run_recipe(original, recipe, samples=samples, check="off"),
                artifact_folder(work, form, role),
                original=original,
                source={"task": name, "role": role},
                held_back=(),
                companions=path.parent,
            )
        except OnnxqError as error:
            keep(refusal_file(work, form, role), {"refused": str(error)})


def artifact_folder(work: Path, form: str, role: str) -> Path:
    """Where the artifact of a form lies."""
    return work / "artifacts" / form / role


def refusal_file(work: Path, form: str, role: str) -> Path:
    """Where it is kept why there is no artifact."""
    return work / form / f"{role}-recipe.json"


def _is_made(work: Path, form: str, role: str) -> bool:
    made = artifact_folder(work, form, role) / REPORT_NAME
    return made.exists() or refusal_file(work, form, role).exists()


def measure_cell(
    name: str, form: str, role: str, target: DeploymentTarget, work: Path
) -> dict[str, Any]:
    """Check, build, run and compare one artifact for one target.

    Args:
        name: of the task.
        form: see `FORMS`; its artifact is there.
        role: the file of the task.
        target: with its options.
        work: folder of the model.

    Returns:
        ``unclean``: counts of the rules that are not kept; ``bytes`` of the folder; ``verified``,
        what the build says; ``ran`` with ``sqnr_db``, ``relative_error`` and ``equal`` on real
        inputs, or ``not_run``, a sentence; or only ``refused``, a sentence.
    """
    source = artifact_folder(work, form, role)
    samples = _held_back(task(name), role, work)[: 1 if target.name == "arm64" else _INPUTS]
    with tempfile.TemporaryDirectory(dir=work, prefix="build-") as scratch:
        try:
            built = build_folder(target, source, Path(scratch) / "built")
        except OnnxqError as error:
            return {"refused": str(error), **_rules(target, source)}
        found = {
            "bytes": sum(built.files.values()),
            "verified": dict(built.verified),
            **_rules(target, source),
        }
        try:
            outputs = target.run(built.folder, samples)
        except OnnxqError as error:
            return {**found, "not_run": str(error)}
        return {**found, "ran": len(samples), **_compared(source, samples, outputs)}


def _rules(target: DeploymentTarget, source: Path) -> dict[str, Any]:
    """Names of the rules that the artifact does not keep, with counts, and of all its sites."""
    try:
        verdicts = target.check(load(source / MODEL_NAME))
    except OnnxqError as error:
        return {"unclean": {}, "sites": {}, "unchecked": str(error)}
    return {
        "unclean": dict(Counter(verdict.rule for verdict in verdicts.unclean)),
        "sites": dict(Counter(site.execution.value for site in verdicts.sites)),
    }


def _compared(
    source: Path, samples: Sequence[Feeds], outputs: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """The worst output beside those of the artifact in ONNX Runtime, with its kernels."""
    sums: dict[str, DeviationSums] = {}
    with open_session(source / MODEL_NAME) as session:
        for sample, found in zip(samples, outputs, strict=True):
            wanted = session.run(sample, list(found))
            for name, value in found.items():
                sums.setdefault(name, DeviationSums()).add(wanted[name], np.asarray(value))
    results = {name: one.result() for name, one in sums.items()}
    worst = min(results, key=lambda name: (results[name].sqnr_db or 0.0, results[name].equal))
    floats = [one for one in results.values() if one.sqnr_db is not None]
    decibels = min((one.sqnr_db for one in floats if one.sqnr_db is not None), default=np.inf)
    return {
        "equal": all(one.equal == 1.0 for one in results.values()),
        "sqnr_db": float(decibels) if np.isfinite(decibels) else None,
        "relative_error": max((one.relative_error or 0.0 for one in floats), default=0.0),
        "worst": worst,
    }


def _held_back(one: Task, role: str, work: Path) -> list[Feeds]:
    """A few held-back inputs of a file, made once for the model."""
    path = work / "inputs" / f"{role}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        for key, samples in one.held_back(one.built(work)).items():
            arrays = {
                f"{number}/{name}": array
                for number, sample in enumerate(samples[:_INPUTS])
                for name, array in sample.items()
            }
            np.savez(path.with_name(f"{key}.npz"), **arrays)  # type: ignore[arg-type]
    found: dict[int, Feeds] = {}
    with np.load(path) as stored:
        for key in stored.files:
            number, name = key.split("/", 1)
            found.setdefault(int(number), {})[name] = stored[key]
    return [found[number] for number in sorted(found)]
