"""Activations that a learned transform may map, who reads them, and the copy it is learned on.

A point is one value of the main graph and the linear sites that read it. To learn, the points need
to be values of their own, read by these sites and nobody else: `learning_copy` puts an Identity
before them in a copy of the model.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Collection, Sequence

import onnx_ir as ir

from onnxq.graph.check import name_nodes
from onnxq.graph.names import unique_value_name
from onnxq.graph.site_slots import integer
from onnxq.graph.sites import Site
from onnxq.graph.stage import clone_model
from onnxq.graph.topology import Topology
from onnxq.graph.weights import weight_tensor
from onnxq.passes.kronecker_writing import KRONECKER

__all__ = ["PointPlan", "find_points", "learning_copy"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PointPlan:
    """One value that may be mapped.

    Attributes:
        value: the activation, its channels on the last axis.
        sites: the sites that will read the mapped value.
        width: its channels.
        is_exclusive: whether nobody else reads the value.
        heads: (heads, width of one) when it is the result of an attention that tells; else None.
    """

    value: ir.Value
    sites: tuple[Site, ...]
    width: int
    is_exclusive: bool
    heads: tuple[int, int] | None


def find_points(
    model: ir.Model, *, exclude: Collection[str] = ()
) -> tuple[list[PointPlan], dict[str, str]]:
    """The points of the main graph, and by name of every other site why it is left alone.

    Args:
        model: the model.
        exclude: name patterns of sites to leave alone.
    """
    topology = Topology(model)
    heads = {block.o: block for block in topology.attention if block.o is not None}
    by_value: dict[ir.Value, list[Site]] = {}
    reasons: dict[str, str] = {}
    for site in topology.sites:
        reason = _refusal(site, topology, exclude)
        if reason is not None or site.input is None:
            reasons[site.name] = reason or "it reads nothing"
        else:
            by_value.setdefault(site.input, []).append(site)
    plans = []
    for value, sites in by_value.items():
        width = sites[0].shape[sites[0].in_axis]
        nodes = {site.node for site in sites}
        others = [node for node in value.consumers() if node not in nodes]
        block = heads.get(sites[0])
        shape = None
        if block is not None and (block.heads or 0) * (block.head_dim or 0) == width:
            shape = (block.heads or 0, block.head_dim or 0)
        plans.append(
            PointPlan(
                value=value,
                sites=tuple(sites),
                width=width,
                is_exclusive=not others and not value.is_graph_output(),
                heads=shape,
            )
        )
    return plans, reasons


def _refusal(site: Site, topology: Topology, exclude: Collection[str]) -> str | None:
    if site.already is not None:
        return f"it is already quantized ({site.already})"
    if any(fnmatch.fnmatchcase(site.name, pattern) for pattern in exclude):
        return "the recipe leaves it as it is"
    if site.refusal is not None:
        return site.refusal
    if site.kind not in ("MatMul", "Gemm"):
        return f"it is a {site.kind}, and only MatMul and Gemm are mapped"
    if site.path:
        return "it is inside a body or function, whose activations cannot be measured"
    if site.weight_index != 1 or integer(site.node, "transA"):
        return "its channels are not on the last axis of what it reads"
    if len(site.shape) != 2 or site.weight is None:
        return f"its weight is no matrix: {list(site.shape)}"
    if weight_tensor(site.weight).dtype not in _FLOATS:
        return f"its weight is {weight_tensor(site.weight).dtype.name}"
    if topology.shared(site).is_shared:
        return f"its weight {site.weight.name!r} is read elsewhere too: run untie_weights first"
    producer = None if site.input is None else site.input.producer()
    if producer is not None and producer.op_type == KRONECKER:
        return "what it reads is mapped already"
    return None


def learning_copy(model: ir.Model, plans: Sequence[PointPlan]) -> tuple[ir.Model, list[str]]:
    """A copy of the model with a value of its own for each point, and the names of these values."""
    copy = clone_model(model)
    name_nodes(copy)
    values = {value.name: value for value in copy.graph.inputs}
    values |= {value.name: value for node in copy.graph for value in node.outputs}
    names = []
    for plan in plans:
        value = values[plan.value.name]
        outputs = {site.output.name for site in plan.sites}
        readers = [n for n in value.consumers() if n.outputs and n.outputs[0].name in outputs]
        point = ir.node("Identity", [value], name=f"{value.name}_point")
        point.outputs[0].name = unique_value_name(copy.graph, f"{value.name}_point")
        point.outputs[0].shape, point.outputs[0].type = value.shape, value.type
        first = next(node for node in copy.graph if node in readers)
        copy.graph.insert_before(first, point)
        for reader in readers:
            reader.replace_input_with(0, point.outputs[0])
        names.append(point.outputs[0].name or "")
    return copy, names
