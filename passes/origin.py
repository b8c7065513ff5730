"""What the model and the samples of a pass follow from, as a hash: the beginning of every key.

A finished piece of work may be used again when the same code, given the same model, samples and
passes, would make it again. So the hash covers the source of the rooms that compute, their native
code, the packages they compute with, the bytes of the model, the samples, and each pass before.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.calibration.samples import samples_hash
from onnxq.graph.content_hash import content_hash
from onnxq.passes.base import Pass
from onnxq.runtime.work_folder import hash_of

__all__ = ["after", "first_origin"]

_ROOMS = ("calibration", "formats", "graph", "learning", "numerics", "runtime", "solvers", "passes")
_PACKAGES = ("numpy", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "array-api-compat")
_SAMPLES = 1024
"""More samples than any pass looks at by default; reading a large data set twice costs time."""


def first_origin(
    model: ir.Model, samples: Iterable[Mapping[str, np.ndarray]] | None, settings: object
) -> str:
    """The origin of the first pass of a recipe.

    Args:
        model: the model the recipe begins with; its weights are read once.
        samples: calibration inputs; the first 1024 are read.
        settings: whatever else decides bits: how many threads share a sum.
    """
    seen = samples_hash(samples, limit=_SAMPLES)
    return hash_of(_code(), _versions(), content_hash(model), seen, settings)


def after(origin: str, step: Pass) -> str:
    """The origin of the pass behind ``step``."""
    return hash_of(origin, step.key(), step.options())


@functools.cache
def _code() -> str:
    digest = hashlib.sha256()
    for room in _ROOMS:
        for place in importlib.import_module(f"onnxq.{room}").__path__:
            files = (file for kind in ("*.py", "*.so", "*.npz") for file in Path(place).glob(kind))
            for file in sorted(files):
                digest.update(file.name.encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
