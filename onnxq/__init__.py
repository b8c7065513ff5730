"""onnxq turns trained models into verified, quantized ONNX artifacts.

The public verbs are `load`, `plan`, `quantize`, `compare`, `evaluate`, `debug`, `check` and
`build`, and `ops_library` is where the kernels of our operators are; all are imported on first use,
so ``import onnxq`` is fast and needs neither torch nor a runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxq.api import Quantized, build, check, compare, debug, load, plan, quantize
    from onnxq.errors import OnnxqError
    from onnxq.quality import evaluate as evaluate
    from onnxq.runtime import ops_library

__all__ = [
    "OnnxqError",
    "Quantized",
    "build",
    "check",
    "compare",
    "debug",
    "evaluate",
    "load",
    "ops_library",
    "plan",
    "quantize",
]

_ELSEWHERE = {"OnnxqError": "onnxq.errors", "ops_library": "onnxq.runtime"}
"""Modules of the names that are not in `onnxq.api`."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name == "evaluate":
        return importlib.import_module("onnxq.evaluate")
    if name in __all__:
        return getattr(importlib.import_module(_ELSEWHERE.get(name, "onnxq.api")), name)
    raise AttributeError(f"module 'onnxq' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return __all__
