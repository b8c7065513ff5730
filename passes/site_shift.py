"""Add a constant to what a layer or a norm gives, and take one back out of what layers read.

For a constant z, one number for each channel of an activation::

    W x + b  =  W (x − z) + (b + W z)

A layer that has no bias gets one: an input of Conv and Gemm, an Add behind a MatMul. A convolution
that pads does not take part: it reads zeros where x − z would have to be −z.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.names import unique_value_name
from onnxq.graph.site_bias import bias_reader, moved_bias
from onnxq.graph.sites import Site
from onnxq.graph.weight_source import stored_weight
from onnxq.graph.weights import add_weight, read_weight, weight_tensor
from onnxq.passes.channel_weights import drop_unread
from onnxq.passes.match import home_of

__all__ = [
    "add_behind",
    "norm_refusal",
    "output_refusal",
    "shift_input",
    "shift_norm",
    "shift_output",
    "shift_refusal",
]

Array = npt.NDArray[Any]

_KINDS = frozenset(["Attention", "MatMul", "Gemm", "Conv"])
_NORMS = {"LayerNormalization": (1, 2), "SkipLayerNormalization": (2, 3)}
"""Norms with a bias: the inputs of their scale and their bias."""


def output_refusal(site: Site) -> str | None:
    """Why no constant can be added to the output of a layer; None when it can."""
    turned = site.kind == "Gemm" and site.weight_index == 0
    if site.kind not in _KINDS or turned or (len(site.shape) != 2 and site.kind != "Conv"):
        return f"{site.name!r} ({site.kind}) takes no bias of one number for each output"
    if site.kind == "Gemm" and not site.node.attributes.get_float("beta", 1.0):
        return f"{site.name!r} multiplies its bias by 0"
    own = site.kind != "MatMul" and len(site.node.inputs) > 2 and site.node.inputs[2] is not None
    if own and bias_reader(site) is None:
        return f"the bias of {site.name!r} is computed or not one number for each output"
    return None


def shift_refusal(site: Site) -> str | None:
    """Why no constant can be added to the input of a layer within its bias; None when it can."""
    if site.kind == "Conv":
        pads = site.node.attributes.get("pads")
        automatic = site.node.attributes.get_string("auto_pad", "NOTSET")
        if automatic not in ("NOTSET", "VALID") or (pads is not None and any(pads.as_ints())):
            return f"{site.name!r} pads its input with zeros, which have no bias"
    return output_refusal(site)


def norm_refusal(node: ir.Node) -> str | None:
    """Why no constant can be added to the output of a norm within its bias; None when it can."""
    if node.op_type not in _NORMS:
        return f"{node.op_type} {node.name!r} has no bias to take a shift"
    scale, bias = _NORMS[node.op_type]
    if stored_weight(node.inputs[scale]) is None:
        return f"the scale of {node.name!r} is computed"
    given = node.inputs[bias] if len(node.inputs) > bias else None
    computed = given is not None and stored_weight(given) is None
    return f"the bias of {node.name!r} is computed" if computed else None


def shift_input(model: ir.Model, site: Site, shift: Callable[[], Array]) -> None:
    """Add W z to the bias of a layer, so that it gives for x what it gave for x + z.

    Args:
        model: the model the site is in.
        site: one that `shift_refusal` has nothing against, as the model has it now.
        shift: z, [input channels]; called when the bias is read. The weight is that of now.
    """
    if site.weight is None:
        raise ValueError(f"site {site.name!r} has no weight: ask shift_refusal first")
    stored = ir.Value(name=site.weight.name, const_value=weight_tensor(site.weight))
    shift_output(model, site, lambda: _product(site, read_weight(stored), shift()))


def shift_output(model: ir.Model, site: Site, shift: Callable[[], Array]) -> None:
    """Add a constant to the product of a layer's weight and input, within its bias.

    Args:
        model: the model the site is in.
        site: one that `output_refusal` has nothing against, as the model has it now.
        shift: [output channels], before a Gemm multiplies it by alpha; called when the bias is
            read.
    """
    place = bias_reader(site)
    if place is None or site.bias is None:
        _add_bias(model, site, shift)
        return
    node, index = place
    tensor = weight_tensor(site.bias)
    # The numbers as they are now: the value itself may be replaced before the model is saved.
    frozen = dataclasses.replace(site, bias=ir.Value(name=site.bias.name, const_value=tensor))
    own = add_weight(
        home_of(model, node), f"{site.bias.name}_moved",
        shape=[int(size) for size in tensor.shape.numpy()], dtype=tensor.dtype,
        compute=lambda: moved_bias(frozen, shift()),
    )  # fmt: skip
    old = node.inputs[index]
    node.replace_input_with(index, own)
    drop_unread(old)


def shift_norm(model: ir.Model, node: ir.Node, shift: Callable[[], Array]) -> None:
    """Add a constant to what a norm gives, within its bias; it gets one when it has none.

    Args:
        model: the model the norm is in.
        node: one that `norm_refusal` has nothing against.
        shift: [channels]; called when the bias is read.
    """
    scale_index, bias_index = _NORMS[node.op_type]
    scale = stored_weight(node.inputs[scale_index])
    if scale is None:
        raise ValueError(f"norm {node.name!r} has no scale: ask norm_refusal first")
    if len(node.inputs) <= bias_index:
        node.resize_inputs(bias_index + 1)
    old = node.inputs[bias_index]
    source = stored_weight(old)
    name = f"{scale.name}_bias" if source is None else f"{source.name}_moved"
    start = None if source is None else ir.Value(name=name, const_value=weight_tensor(source))
    dtype = weight_tensor(scale).dtype if old is None else old.dtype or weight_tensor(scale).dtype

    def compute() -> Array:
        bias = 0.0 if start is None else read_weight(start).astype(np.float64).reshape(-1)
        return np.asarray((bias + shift()).astype(dtype.numpy()))

    shape = [int(weight_tensor(scale).size)]
    own = add_weight(home_of(model, node), name, shape=shape, dtype=dtype, compute=compute)
    node.replace_input_with(bias_index, own)
    drop_unread(old)


def add_behind(output: ir.Value, term: ir.Value, name: str) -> None:
    """``Add(output, term)`` for everything that read what a node gives.

    Args:
        output: of a node; a result of the graph keeps its name.
        term: broadcast over it; a weight of the same graph, or a value that is computed before.
        name: put behind that of the output, for the sum.
    """
    producer = output.producer()
    graph = None if producer is None else producer.graph
    if producer is None or graph is None:
        return
    add = ir.node("Add", [output, term])
    result = add.outputs[0]
    result.type, result.shape = output.type, output.shape
    result.name = unique_value_name(graph, f"{output.name}_{name}")
    add.name = result.name
    for use in tuple(output.uses()):
        if use.node is not add:
            use.node.replace_input_with(use.idx, result)
    if output.is_graph_output() and isinstance(graph, ir.Graph):
        output.name, result.name = result.name, output.name
        for index, value in enumerate(graph.outputs):
            if value is output:
                graph.outputs[index] = result
    graph.insert_after(producer, add)


def _product(site: Site, weight: Array, amounts: Array) -> Array:
    """W z where every place holds the same z: float64 [output channels]."""
    wide, given = weight.astype(np.float64), np.asarray(amounts, np.float64)
    if site.kind != "Conv":
        return np.asarray(np.moveaxis(wide, (site.out_axis, site.in_axis), (0, 1)) @ given)
    taps = wide.reshape(*wide.shape[:2], -1).sum(axis=2)  # [outputs, inputs of a group]
    grouped = taps.reshape(site.groups, -1, taps.shape[1])
    return np.asarray(np.einsum("goi,gi->go", grouped, given.reshape(site.groups, -1)).reshape(-1))


def _add_bias(model: ir.Model, site: Site, shift: Callable[[], Array]) -> None:
    """Give a layer without a bias one."""
    node = site.node
    operand = node.inputs[site.weight_index]
    if site.weight is None or operand is None:
        raise ValueError(f"site {site.name!r} has no weight: ask output_refusal first")
    dtype = operand.dtype or weight_tensor(site.weight).dtype  # the weight may be cast
    count = site.shape[site.out_axis]
    shape = [count, 1] if site.weight_index == 0 and site.kind == "MatMul" else [count]
    scale = 1.0
    if site.kind == "Gemm":
        attributes = node.attributes
        scale = attributes.get_float("alpha", 1.0) / attributes.get_float("beta", 1.0)

    def compute() -> Array:
        return np.asarray((scale * shift()).reshape(shape).astype(dtype.numpy()))

    bias = add_weight(
        home_of(model, node), f"{site.output.name}_bias", shape=shape, dtype=dtype, compute=compute
    )
    if site.kind == "MatMul":
        add_behind(site.output, bias, "shifted")
        return
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, bias)
