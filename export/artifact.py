"""The artifact: a folder with the model, what the runtime needs beside it, and ``onnxq.json``.

It is written beside its final place, verified *as written* (structure, loads in ONNX Runtime,
outputs compared with the original on held-back inputs), and only then moved there. A run that
fails or is killed at any moment leaves an earlier artifact as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.errors import ArtifactError, OnnxqError
from onnxq.evaluate import compare_models
from onnxq.export.exported import fresh_folder, refuse_occupied
from onnxq.export.genai import copy_companions
from onnxq.export.operator_library import bundle_library
from onnxq.graph import check_graph, load, save
from onnxq.passes.runner import RecipeResult
from onnxq.runtime.cache import file_hash
from onnxq.runtime.run_log import stage, stages_so_far

MODEL_NAME = "model.onnx"
REPORT_NAME = "onnxq.json"
Account = Callable[[int], Mapping[str, Any]]
"""Makes the content of a further file, given the bytes of the model files."""

_PACKAGES = ("onnxq", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A written and verified artifact.

    Attributes:
        folder: where it is.
        report: the content of its ``onnxq.json``.
    """

    folder: Path
    report: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The ONNX file inside."""
        return self.folder / MODEL_NAME

    @property
    def nbytes(self) -> int:
        """Bytes of the graph and its external data: what a deployment carries."""
        return sum(
            entry["bytes"]
            for name, entry in self.report["files"].items()
            if name.startswith(MODEL_NAME)
        )


def write_artifact(
    result: RecipeResult,
    folder: Path,
    *,
    original: ir.Model,
    source: Mapping[str, Any],
    held_back: Sequence[Mapping[str, np.ndarray]],
    companions: Path | None = None,
    overwrite: bool = False,
    accounts: Mapping[str, Account] | None = None,
) -> Artifact:
    """Write, verify and put in place.

    Args:
        result: what the recipe gave.
        folder: the artifact's folder; made when missing.
        original: the model the recipe started from, for the comparison.
        source: where the model came from, for the report.
        held_back: inputs that calibration has not seen; empty skips the run on ONNX Runtime
            (for models larger than memory) and says so in the report.
        companions: folder whose tokenizer, ``genai_config.json`` and other runtime files are
            carried along; None when the model came without.
        overwrite: replace a folder that holds another model; an onnxq artifact is replaced
            without asking, as a nightly run would want.
        accounts: further files by name: each is made from the bytes of the written model files,
            and holds plain values as JSON.

    Raises:
        ExportError: the folder holds something else, which is untouched.
        ArtifactError: the written model fails verification; what was there before is untouched.
    """
    folder = folder.absolute()
    mine = refuse_foreign(folder, overwrite)
    with fresh_folder(folder, overwrite=mine) as staging:
        with stage("write"):
            path = save(result.model, staging / MODEL_NAME)
        if companions is not None:
            copy_companions(companions, staging)
        operators = bundle_library(result.model, staging)
        for name, account in (accounts or {}).items():
            _write_json(staging / name, account(_model_bytes(staging)))
        with stage("verify"):
            verification = _verify(path, original, held_back)
        report = {
            "onnxq": importlib.metadata.version("onnxq"),
            "source": dict(source),
            "recipe": result.recipe.to_dict(),
            "versions": _versions(),
            "steps": [step.to_dict() for step in result.steps],
            "stages": stages_so_far(),
            "operators": operators,
            "verification": verification,
            "files": _files(staging),
        }
        _write_json(staging / REPORT_NAME, report)
    return Artifact(folder, report)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=1, allow_nan=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")


def _model_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{MODEL_NAME}*"))


def refuse_foreign(folder: Path, overwrite: bool) -> bool:
    """Raise `ExportError` when ``folder`` may not be written; return whether it is replaced."""
    refuse_occupied(folder, overwrite=True)  # also puts back what a killed run had moved away
    mine = overwrite or (folder / REPORT_NAME).exists()
    refuse_occupied(folder, mine)
    return mine


def read_artifact(folder: Path) -> Artifact:
    """Open an artifact that was written before.

    Raises:
        ArtifactError: the folder has no readable ``onnxq.json``.
    """
    path = folder / REPORT_NAME
    try:
        return Artifact(folder, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} is not an onnxq artifact: {path} {error}") from error


def _verify(
    path: Path, original: ir.Model, held_back: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """Check the file that was written, not the object it was written from."""
    try:
        written = load(path)
        check_graph(written)
        if not held_back:
            return {"graph": "ok", "outputs": "not compared: no inputs were given"}
        comparison = compare_models(original, path, held_back)
    except OnnxqError as error:
        raise ArtifactError(
            f"The written model failed its verification and was not put in place: {error}"
        ) from error
    return {"graph": "ok", "onnxruntime": "loads and runs", "outputs": comparison.to_dict()}


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    found["cpus"] = str(os.cpu_count())
    return found
