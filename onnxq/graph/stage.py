"""The stages a model goes through, and what is legal at each: an executable specification.

``FLOAT → PREPARED → TRANSFORMED → CALIBRATED → QUANTIZED → LOWERED``. The stage is kept in
``model.meta``; the recipe runner checks it between passes, so that "rotated after calibrating" is
an error message and not a bad model.
"""

from __future__ import annotations

import enum
import math

import onnx_ir as ir

from onnxq.errors import UnsupportedGraph
from onnxq.graph.check import graph_problems
from onnxq.graph.walk import site_name, walk_graphs, walk_nodes
from onnxq.graph.weights import is_weight, weight_tensor

__all__ = ["Stage", "check_stage", "clone_model", "mark_stage", "require_stage", "stage_of"]

_META_KEY = "onnxq.stage"
_RANGE_KEY = "onnxq.range"
_LARGE_CONSTANT = 1024
"""Bytes from which a Constant node must have become an initializer at `Stage.PREPARED`."""
_OPSET_OF_DTYPE = {
    ir.DataType.INT4: 21,
    ir.DataType.UINT4: 21,
    ir.DataType.INT16: 21,
    ir.DataType.UINT16: 21,
    ir.DataType.FLOAT4E2M1: 23,
    ir.DataType.INT2: 25,
    ir.DataType.UINT2: 25,
}
"""The first opset whose QuantizeLinear and DequantizeLinear take the type."""


class Stage(enum.IntEnum):
    """How far a model has come; later stages compare greater."""

    FLOAT = 0
    """As it was loaded: weights may be Constant nodes, norms may be decomposed."""
    PREPARED = 1
    """Constants are initializers, foldable arithmetic is folded, names are unique."""
    TRANSFORMED = 2
    """Equivalent transforms have been applied; no more of them may follow calibration."""
    CALIBRATED = 3
    """Activation ranges are in ``value.meta`` and belong to the graph as it is."""
    QUANTIZED = 4
    """Weights or activations are stored in low-bit formats."""
    LOWERED = 5
    """Written in the form of one runtime: fused or custom operators."""


def stage_of(model: ir.Model) -> Stage:
    """The stage the model has reached; a model nobody marked is `Stage.FLOAT`."""
    stage = model.meta.get(_META_KEY, Stage.FLOAT)
    return Stage(stage)


def mark_stage(model: ir.Model, stage: Stage) -> None:
    """Record that the model has reached ``stage``. It never goes back."""
    model.meta[_META_KEY] = max(stage, stage_of(model))


def clone_model(model: ir.Model) -> ir.Model:
    """A copy of the model that shares its weights and keeps its stage and other facts.

    ``ir.Model.clone`` drops ``model.meta``, and with it the stage.
    """
    copy = model.clone()
    copy.meta.update(model.meta)
    return copy


def require_stage(model: ir.Model, at_least: Stage, who: str) -> None:
    """Raise `UnsupportedGraph` unless the model has reached ``at_least``."""
    here = stage_of(model)
    if here < at_least:
        raise UnsupportedGraph(
            f"{who} needs a model at stage {at_least.name}, and this one is at {here.name}: "
            f"put the pass that gives {at_least.name} earlier in the recipe."
        )


def check_stage(model: ir.Model) -> None:
    """Verify that the model is what its stage says; reads no weight data.

    At every stage the graph is well formed. From PREPARED on, node names are unique; until
    CALIBRATED, no large weight sits in a Constant node. At CALIBRATED there are activation
    ranges, all finite and none stale. From QUANTIZED on, each QuantizeLinear and
    DequantizeLinear has types and attributes that the model's opset knows.

    Raises:
        UnsupportedGraph: what is not legal, naming stage, node and tensor.
    """
    stage = stage_of(model)
    problems = graph_problems(model, node_names=stage >= Stage.PREPARED)
    if Stage.PREPARED <= stage <= Stage.CALIBRATED:
        problems += _large_constants(model)
    if stage == Stage.CALIBRATED:
        problems += _range_problems(model)
    if stage >= Stage.QUANTIZED:
        problems += _quantizer_problems(model)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UnsupportedGraph(
            f"The model is marked {stage.name} but is not: {'; '.join(problems[:3])}{more}. "
            f"The pass that ran last left it so."
        )


def _large_constants(model: ir.Model) -> list[str]:
    """Constant nodes that should be initializers; a function can have no initializers."""
    return [
        f"Constant node {site_name(path, node)!r} holds {weight_tensor(node.outputs[0]).nbytes} "
        f"bytes that should be an initializer"
        for path, graph in walk_graphs(model)
        if isinstance(graph, ir.Graph)
        for node in graph
        if node.op_type == "Constant"
        and is_weight(node.outputs[0])
        and weight_tensor(node.outputs[0]).nbytes >= _LARGE_CONSTANT
    ]


def _range_problems(model: ir.Model) -> list[str]:
    problems: list[str] = []
    count = 0
    for path, graph in walk_graphs(model):
        values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
        for value in values:
            found = value.meta.get(_RANGE_KEY)
            if found is None:
                continue
            count += 1
            where = f"{value.name!r}" + (f" in {path}" if path else "")
            stale = getattr(found, "stale", None)  # of the calibration room's own record
            found = getattr(found, "range", found)
            if stale or not value.meta.is_valid(_RANGE_KEY):
                problems.append(f"the range of {where} is stale: calibrate after transforming")
            elif not _is_range(getattr(found, "low", None), getattr(found, "high", None)):
                problems.append(f"the range of {where} is {found}, not low <= high and finite")
    if count == 0:
        problems.append("no value has an activation range: run a calibration pass with data")
    return problems


def _is_range(low: object, high: object) -> bool:
    if not isinstance(low, float | int) or not isinstance(high, float | int):
        # Ranges per channel hold arrays; their own class checks them.
        return low is not None and high is not None
    return math.isfinite(low) and math.isfinite(high) and low <= high


def _quantizer_problems(model: ir.Model) -> list[str]:
    opset = model.opset_imports.get("", 0)
    problems = []
    for path, node in walk_nodes(model):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.domain != "":
            continue
        stored = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
        dtype = None if stored is None else stored.dtype
        needs = _OPSET_OF_DTYPE.get(dtype, 0) if dtype is not None else 0
        if "block_size" in node.attributes:
            needs = max(needs, 21)
        label = f"node {site_name(path, node)!r} ({node.op_type})"
        if opset < needs:
            kind = dtype.name if dtype is not None else "blocks"
            problems.append(f"{label} with {kind} needs opset {needs}, the model has {opset}")
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        if zero is not None and zero.dtype is not None and dtype not in (None, zero.dtype):
            problems.append(
                f"{label} stores {dtype.name if dtype else None} but the zero point "
                f"{zero.name!r} is {zero.dtype.name}"
            )
    return problems
