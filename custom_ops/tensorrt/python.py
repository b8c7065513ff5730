"""The operators as plugins in Python: ``register_plugins(tensorrt.plugin)``.

TensorRT asks a function for the shape of Y, another for the types that a node may have, and a third
for a kernel, its PTX and the blocks that start it; the kernel goes into the engine, which then
needs neither Python nor onnxq. Functions are made from the table of `onnxq.custom_ops.tensorrt.
nodes`: what they take is written into their signatures, where TensorRT reads it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from onnxq.custom_ops.functions import DOMAIN
from onnxq.custom_ops.tensorrt.nodes import PLUGINS, PluginNode, blocks_of, launch_of
from onnxq.custom_ops.tensorrt.ptx import kernel_text

__all__ = ["register_plugins"]

_TYPES = {
    "a": "FP32|FP16",
    "u": "INT8",
    "i": "INT8",
    "h": "FP16",
    "s": "FP32*FP16",
    "t": "INT8*FP16",
}
_HALF = "HALF"


def register_plugins(trtp: Any) -> tuple[str, ...]:
    """Register a plugin for every operator, as ``onnxq::<name>``.

    Args:
        trtp: the module ``tensorrt.plugin``; one that registered them already is left alone.

    Returns:
        Names of the operators.
    """
    if getattr(trtp, "_onnxq", False):
        return tuple(PLUGINS)
    for name, node in PLUGINS.items():
        plugin = f"{DOMAIN}::{name}"
        trtp.register(plugin)(_describe(trtp, node))
        trtp.autotune(plugin)(_tune(trtp, node))
        trtp.aot_impl(plugin)(_implement(trtp, name, node))
    trtp._onnxq = True
    return tuple(PLUGINS)


def _describe(trtp: Any, node: PluginNode) -> Callable[..., Any]:
    """Y: of the type of the first input, its last axis as long as the weight has rows."""

    def describe(inputs: list[Any], attributes: dict[str, int]) -> Any:
        result = inputs[0].like()
        sizes = list(result.shape_expr)
        for axis, size in enumerate(node.result_shape(sizes, attributes)):
            if size is not sizes[axis]:
                result.shape_expr[axis] = size
        return result

    return _signed(trtp, node, describe, (), trtp.TensorDesc)


def _tune(trtp: Any, node: PluginNode) -> Callable[..., Any]:
    """The types of inputs and Y; rows lie one after the other."""

    def tune(inputs: list[Any], attributes: dict[str, int]) -> Any:
        types = ", ".join(_TYPES[kind] for kind in f"{node.types}a")
        return [trtp.AutoTuneCombination(types, "LINEAR")]

    outputs = ("outputs", tuple[trtp.TensorDesc])
    return _signed(trtp, node, tune, (outputs,), list[trtp.AutoTuneCombination])


def _implement(trtp: Any, name: str, node: PluginNode) -> Callable[..., Any]:
    """The kernel, its PTX, the blocks, and the integers that it takes behind the inputs."""

    def implement(inputs: list[Any], attributes: dict[str, int]) -> Any:
        shapes = [(), *(tuple(desc.shape) for desc in inputs[1:])]
        halves = [desc.dtype.name == _HALF for desc in inputs]
        launch = launch_of(name, attributes, shapes, halves)
        sizes = list(inputs[0].shape_expr)
        width = attributes["size"] if "size" in attributes else attributes["columns"]
        tokens = trtp.ShapeExpr(1)
        for size in sizes[:-1]:
            tokens = tokens * size
        if not launch.rows:
            tokens = tokens * (sizes[-1] // width)
        how = trtp.KernelLaunchParams()
        how.grid_x, how.grid_y = blocks_of(launch, tokens, trtp.cdiv)
        how.block_x, how.shared_mem = launch.threads, launch.shared
        given = [tokens, *launch.integers] if launch.rows else [*launch.integers]
        integers = trtp.SymIntExprs.from_tuple([trtp.SymInt32(value) for value in given])
        return launch.kernel, kernel_text(name, launch.kernel), how, integers

    behind = (("outputs", tuple[trtp.TensorDesc]), ("tactic", int))
    returned = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]
    return _signed(trtp, node, implement, behind, returned)


def _signed(
    trtp: Any,
    node: PluginNode,
    work: Callable[[list[Any], dict[str, int]], Any],
    behind: tuple[tuple[str, Any], ...],
    returned: Any,
) -> Callable[..., Any]:
    """``work`` as a function of inputs, attributes and what it leaves alone, each annotated."""
    annotations: Mapping[str, Any] = {
        **dict.fromkeys(node.inputs, trtp.TensorDesc),
        **dict.fromkeys(node.attributes, int),
        **dict(behind),
    }
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature(
        [inspect.Parameter(name, kind, annotation=type_) for name, type_ in annotations.items()],
        return_annotation=returned,
    )

    def function(*given: Any, **named: Any) -> Any:
        found = signature.bind(*given, **named).arguments
        inputs = [found[name] for name in node.inputs]
        attributes = {name: int(found[name]) for name in node.attributes}
        return work(inputs, attributes)

    function.__signature__ = signature  # type: ignore[attr-defined]
    return function
