"""The library of kernels for the operators of domain ``onnxq``, which sessions load by themselves.

A model that uses such an operator carries its meaning as a function, so it runs without the
library too; with it the kernels run instead.
"""

from __future__ import annotations

import functools
import importlib.resources
import os
from pathlib import Path
from typing import Any

from onnxq.errors import OnnxqError

__all__ = ["ops_library", "register_operators"]

_NAMES = ("libonnxq_ops.so", "libonnxq_ops.dylib", "onnxq_ops.dll")
_SWITCH = "ONNXQ_CUSTOM_OPS"


def ops_library() -> str:
    """The path of the library to give to ``SessionOptions.register_custom_ops_library``.

    Raises:
        OnnxqError: onnxq was installed without its native part.
    """
    found = _library()
    if found is None:
        raise OnnxqError(
            f"This installation of onnxq has no {_NAMES[0]}: build it with 'pip install .' from "
            "the sources. Models run without it, by the functions they carry."
        )
    return str(found)


def register_operators(options: Any, wanted: bool | None) -> None:
    """Load the library into a session that is to be opened, where it is there.

    Args:
        options: ``onnxruntime.SessionOptions``.
        wanted: False leaves it out; None asks the environment, where ``ONNXQ_CUSTOM_OPS=0`` leaves
            it out.
    """
    if wanted is None:
        wanted = os.environ.get(_SWITCH, "1") != "0"
    library = _library() if wanted else None
    if library is not None:
        options.register_custom_ops_library(str(library))


@functools.cache
def _library() -> Path | None:
    folder = importlib.resources.files("onnxq.runtime")
    for name in _NAMES:
        found = folder.joinpath(name)
        if found.is_file():
            return Path(str(found))
    return None
