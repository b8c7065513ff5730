"""The deployment targets by name, and how a folder is built for one: whole, or not at all.

A target's module is imported when it is asked for, so that listing them needs no runtime.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from onnxq.errors import UsageError
from onnxq.export.exported import fresh_folder, refuse_occupied
from onnxq.export.target import BuiltTarget, DeploymentTarget
from onnxq.graph import load
from onnxq.passes.configuring import configured, nearest_clause, options_of

__all__ = ["ACCOUNT", "TARGETS", "build_folder", "target_class", "target_with"]

ACCOUNT = "onnxq-build.json"
"""Name of the file in a built folder that tells what was built, from what, and how it was
verified."""

_log = logging.getLogger(__name__)

TARGETS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "onnxruntime-cpu": ("onnxq.export.to_onnxruntime", "OnnxRuntimeCpu"),
        "onnxruntime-cuda": ("onnxq.export.to_onnxruntime_cuda", "OnnxRuntimeCuda"),
        "genai": ("onnxq.export.to_genai", "Genai"),
        "mobile": ("onnxq.export.to_mobile", "Mobile"),
        "arm64": ("onnxq.export.to_arm64", "Arm64"),
        "tensorrt": ("onnxq.export.to_tensorrt", "TensorRt"),
        "tensorrt-rtx": ("onnxq.export.to_tensorrt", "TensorRtRtx"),
        "web": ("onnxq.export.to_web", "Web"),
    }
)
"""Module and class of each target."""


def target_class(name: str) -> type[DeploymentTarget]:
    """The class of a target by name.

    Raises:
        UsageError: there is no such target; the nearest is named.
    """
    if name not in TARGETS:
        raise UsageError(
            f"There is no target {name!r}{nearest_clause(name, TARGETS)}. `onnxq targets` lists "
            "them."
        )
    module, word = TARGETS[name]
    found: type[DeploymentTarget] = getattr(importlib.import_module(module), word)
    return found


def target_with(target: str | DeploymentTarget, settings: Sequence[str] = ()) -> DeploymentTarget:
    """A target with options of the form ``key=value``, which are the fields of its class.

    Raises:
        UsageError: an unknown target or key, or a value of the wrong type.
    """
    if isinstance(target, DeploymentTarget):
        if settings:
            raise UsageError("Give settings with the name of a target; this one is made already.")
        return target
    cls = target_class(target)
    return configured(cls, options_of(settings), f"Target {target!r}", UsageError)


def build_folder(
    target: DeploymentTarget, source: Path, out: Path, *, overwrite: bool = False
) -> BuiltTarget:
    """Check a model, write its folder for a target, verify it and put it in place.

    Args:
        target: with its options.
        source: an artifact or any model: its folder, or its ``.onnx`` file.
        out: the folder; a build that is there already is replaced without asking, as a nightly
            run would want.
        overwrite: replace a folder that holds another model.

    Raises:
        OnnxqError: the target cannot run the model, or the folder holds something else; what was
            there before is untouched.
    """
    out = out.absolute()
    refuse_occupied(out, overwrite=True)  # also puts back what a killed run had moved away
    replaces = overwrite or (out / ACCOUNT).exists()
    refuse_occupied(out, replaces)
    verdicts = target.check(load(source))
    with fresh_folder(out, overwrite=replaces) as staging:
        verified = target.build(source, staging)
        files = {
            path.relative_to(staging).as_posix(): path.stat().st_size
            for path in sorted(staging.rglob("*"))
            if path.is_file()
        }
        built = BuiltTarget(
            target=target.name, folder=out, files=files, verified=verified, verdicts=verdicts
        )
        account = {**built.to_dict(), "source": str(source), "options": repr(target)}
        text = json.dumps(account, indent=1, allow_nan=False, default=str)
        (staging / ACCOUNT).write_text(text + "\n", encoding="utf-8")
    _log.info("built %s for %s in %s", source, target.name, out)
    return built
