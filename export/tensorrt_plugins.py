"""Plugins that compute the operators of onnxq in TensorRT: where they are, and the model for them.

TensorRT looks an operator up among its own, then among the functions of the model, then among
plugins, by name and, as namespace, domain; so a model for plugins is one without the functions.
Its parser turns constants of uint8 into int32, so codes are handed over as int8, bit for bit.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.resources
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.custom_ops.functions import DOMAIN
from onnxq.custom_ops.tensorrt.nodes import PLUGINS
from onnxq.custom_ops.tensorrt.python import register_plugins
from onnxq.errors import UnsupportedGraph, UsageError
from onnxq.graph import is_weight, replace_weight, site_name, walk_nodes
from onnxq.graph.weights import add_weight, read_weight, weight_tensor
from onnxq.passes.configuring import nearest_clause

__all__ = [
    "HOW_TO_BUILD",
    "LIBRARY",
    "OPERATORS",
    "PluginChoice",
    "is_plugged",
    "plugin_choice",
    "plugin_refusal",
    "use_plugins",
]

LIBRARY = "libonnxq_tensorrt.so"
"""The plugins in C++, built from custom_ops/tensorrt where headers of TensorRT were given."""

OPERATORS = tuple(PLUGINS)
"""The operators that these plugins compute."""

HOW_TO_BUILD = (
    "install onnxq from its sources where nvcc is, with the folder of NvInferRuntime.h in the "
    "environment: ONNXQ_TENSORRT_INCLUDE=/path/to/TensorRT/include pip install ."
)

_PYTHON = "python"
_ELEMENTS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_NO_PYTHON = (
    "takes no plugins in Python that are compiled ahead of time (tensorrt.plugin.aot_impl): "
    "install a later one, or take the plugins in C++, plugins=onnxq"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PluginChoice:
    """What the option ``plugins`` of target tensorrt asks for.

    Attributes:
        operators: the operators of onnxq that plugins compute.
        libraries: libraries to load into TensorRT's registry before a model is parsed.
        in_python: whether to register the plugins in Python.
    """

    operators: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    in_python: bool = False

    def load(self, trt: Any) -> tuple[Path, ...]:
        """Load the libraries into the registry of a TensorRT, and register plugins in Python.

        Returns:
            Where the libraries are, which an engine needs as it runs.

        Raises:
            UsageError: a library was not built or is not there, or TensorRT does not load it; or
                it has no plugins in Python.
        """
        if self.in_python:
            register_plugins(_python_plugins(trt))
        paths = tuple(
            _built_library() if name == LIBRARY else Path(name) for name in self.libraries
        )
        for path in paths:
            if not path.is_file():
                raise UsageError(f"There is no library of plugins {str(path)!r}.")
            if path in _LOADED:
                continue
            if trt.get_plugin_registry().load_library(str(path)) is None:
                raise UsageError(
                    f"TensorRT {trt.__version__} does not load the plugins of {str(path)!r}: "
                    f"build them with its own headers; {HOW_TO_BUILD}."
                )
            _LOADED.add(path)
        return paths


_LOADED: set[Path] = set()
"""Libraries in the registry of this process: a second copy would be refused."""


def plugin_choice(plugins: str | Sequence[str]) -> PluginChoice:
    """What names, paths and the word ``onnxq`` stand for.

    Args:
        plugins: ``onnxq`` for the library of this installation, a path that ends in ``.so`` for
            another build of it, ``python`` for the plugins in Python, or operators that the program
            has registered plugins for; several as a list, or with commas between them.

    Raises:
        UsageError: none of these.
    """
    plugins = plugins.split(",") if isinstance(plugins, str) else plugins
    operators: list[str] = []
    libraries: list[str] = []
    for name in plugins:
        if name in (DOMAIN, _PYTHON) or name.endswith(".so"):
            operators += OPERATORS
            libraries += [] if name == _PYTHON else [LIBRARY if name == DOMAIN else name]
        elif name in OPERATORS:
            operators.append(name)
        else:
            raise UsageError(
                f"plugins={name} is no operator of onnxq ({', '.join(sorted(OPERATORS))}), no "
                f"library (a path that ends in .so), not {DOMAIN!r}, which stands for {LIBRARY}, "
                f"and not {_PYTHON!r}, the plugins in Python"
                f"{nearest_clause(name, OPERATORS) or '.'}"
            )
    return PluginChoice(
        operators=tuple(dict.fromkeys(operators)),
        libraries=tuple(dict.fromkeys(libraries)),
        in_python=_PYTHON in plugins,
    )


def plugin_refusal(node: ir.Node) -> str | None:
    """Why a plugin cannot compute a node, as a clause; None when it can, as far as is known."""
    first = node.inputs[0] if node.inputs else None
    kind = None if first is None else _dtype(first)
    if first is not None and kind not in (None, *_ELEMENTS):
        return f"its input {first.name!r} is {kind.name}, and plugins take float32 or float16"
    for value in node.inputs:
        if value is not None and _dtype(value) is ir.DataType.UINT8 and not is_weight(value):
            return (
                f"its input {value.name!r}, uint8 numbers, is computed as the model runs, and "
                "TensorRT has no type for them"
            )
    return None


def use_plugins(model: ir.Model, operators: Sequence[str]) -> None:
    """Rewrite ``model`` in place so that TensorRT takes plugins for ``operators``.

    Raises:
        UnsupportedGraph: a plugin cannot compute a node.
    """
    for key in [key for key in model.functions if key[0] == DOMAIN and key[1] in operators]:
        del model.functions[key]
    users = {
        node: site_name(path, node)
        for path, node in walk_nodes(model)
        if is_plugged(node, operators)
    }
    copies: dict[ir.Value, ir.Value] = {}
    for node, name in users.items():
        reason = plugin_refusal(node)
        if reason is not None:
            raise UnsupportedGraph(f"{node.op_type} {name!r} has no plugin: {reason}.")
        for index, value in enumerate(node.inputs):
            if value is None or _dtype(value) is not ir.DataType.UINT8:
                continue
            if value not in copies:
                copies[value] = _as_int8(model, value, users)
            node.replace_input_with(index, copies[value])


def is_plugged(node: ir.Node, operators: Collection[str]) -> bool:
    """Whether a plugin computes this node, where there are plugins for ``operators``."""
    return node.domain == DOMAIN and node.op_type in operators


def _as_int8(model: ir.Model, value: ir.Value, users: dict[ir.Node, str]) -> ir.Value:
    """The same bytes as int8: the weight itself, or a copy where others read it."""
    tensor = weight_tensor(value)
    shape = [int(size) for size in tensor.shape.numpy()]
    if value.producer() is None and all(node in users for node, _ in value.uses()):
        replace_weight(value, shape=shape, dtype=ir.DataType.INT8, compute=_bytes_of(tensor))
        return value
    array = read_weight(value).view(np.int8)
    name = f"{value.name}_int8"
    return add_weight(model.graph, name, shape=shape, dtype=ir.DataType.INT8, compute=array)


def _bytes_of(tensor: ir.TensorProtocol) -> Callable[[], np.ndarray[Any, Any]]:
    return lambda: tensor.numpy().view(np.int8)


def _dtype(value: ir.Value) -> ir.DataType | None:
    if value.dtype is None and value.const_value is not None:
        return value.const_value.dtype
    return value.dtype


def _python_plugins(trt: Any) -> Any:
    """The module ``tensorrt.plugin``."""
    try:
        found = importlib.import_module(f"{trt.__name__}.plugin")
    except ImportError as error:
        raise UsageError(f"{trt.__name__} {trt.__version__} {_NO_PYTHON}.") from error
    if not hasattr(found, "aot_impl"):
        raise UsageError(f"{trt.__name__} {trt.__version__} {_NO_PYTHON}.")
    return found


def _built_library() -> Path:
    found = Path(str(importlib.resources.files("onnxq.runtime").joinpath(LIBRARY)))
    if not found.is_file():
        raise UsageError(
            f"This installation of onnxq has no {LIBRARY}, the plugins for TensorRT: "
            f"{HOW_TO_BUILD}. Without plugins=, operators run as their functions where TensorRT's "
            "parser takes these."
        )
    return found
