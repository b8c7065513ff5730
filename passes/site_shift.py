"""Move the output of a linear layer by a constant, within its bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.names import unique_value_name
from onnxq.graph.orientation import to_rows
from onnxq.graph.site_bias import bias_reader
from onnxq.graph.sites import Site
from onnxq.graph.weights import add_weight, read_weight, weight_tensor
from onnxq.passes.channel_weights import drop_unread
from onnxq.passes.match import home_of

__all__ = ["shift_input", "shift_refusal"]

Array = npt.NDArray[Any]


def shift_refusal(site: Site) -> str | None:
    """Why no constant can be added to the input of a layer within its bias; None when it can."""
    if site.kind == "Conv":
        pads = site.node.attributes.get("pads")
        automatic = site.node.attributes.get_string("auto_pad", "NOTSET")
        if automatic not in ("NOTSET", "VALID") or (pads is not None and any(pads.as_ints())):
            return f"{site.name!r} pads its input with zeros, which have no bias"
        return None if site.groups == 1 else f"{site.name!r} works on groups of channels"
    if site.kind not in ("MatMul", "Gemm") or site.weight_index != 1:
        return f"{site.name!r} ({site.kind}) takes no bias of one number for each output"
    if site.kind == "Gemm" and not site.node.attributes.get_float("beta", 1.0):
        return f"{site.name!r} multiplies its bias by 0"
    own = site.kind == "Gemm" and len(site.node.inputs) > 2 and site.node.inputs[2] is not None
    if own and bias_reader(site) is None:
        return f"the bias of {site.name!r} is computed or not one number for each output"
    return None


def shift_input(model: ir.Model, site: Site, shift: Callable[[], Array]) -> None:
    """Add W z to the bias of a layer, so that it gives for x what it gave for x + z.

    Args:
        model: the model the site is in.
        site: one that `shift_refusal` has nothing against.
        shift: z, [input channels]; called when the bias is read. The weight is that of now.
    """
    if site.weight is None:
        return
    stored = ir.Value(name=site.weight.name, const_value=weight_tensor(site.weight))
    dtype = weight_tensor(site.weight).dtype

    def product() -> Array:
        rows = to_rows(site, read_weight(stored).astype(np.float64)).astype(np.float64)
        given = np.asarray(shift(), np.float64)
        wide = np.repeat(given, rows.shape[1] // given.size)
        alpha = site.node.attributes.get_float("alpha", 1.0) if site.kind == "Gemm" else 1.0
        return alpha * (rows @ wide)

    place = bias_reader(site)
    if place is not None and site.bias is not None:
        _move(model, site, place, product)
        return
    features = site.shape[site.out_axis]
    beta = site.node.attributes.get_float("beta", 1.0) if site.kind == "Gemm" else 1.0
    bias = add_weight(
        home_of(model, site.node),
        f"{site.output.name}_bias",
        shape=[features],
        dtype=dtype,
        compute=lambda: (product() / beta).astype(dtype.numpy()),
    )
    if site.kind in ("Gemm", "Conv"):
        site.node.resize_inputs(3)
        site.node.replace_input_with(2, bias)
    else:
        _add_behind(site, bias)


def _move(
    model: ir.Model, site: Site, place: tuple[ir.Node, int], product: Callable[[], Array]
) -> None:
    node, index = place
    if site.bias is None:
        return
    tensor = weight_tensor(site.bias)
    kept = ir.Value(name=site.bias.name, const_value=tensor)

    def compute() -> Array:
        bias = read_weight(kept).astype(np.float64)
        scale = 1.0
        if site.kind == "Gemm" and site.bias_node is None:
            scale = 1.0 / site.node.attributes.get_float("beta", 1.0)
        moved: Array = bias + scale * product().reshape(bias.shape)
        return moved.astype(tensor.dtype.numpy())

    shape = [int(size) for size in tensor.shape.numpy()]
    name = f"{site.bias.name}_moved"
    own = add_weight(home_of(model, node), name, shape=shape, dtype=tensor.dtype, compute=compute)
    old = node.inputs[index]
    node.replace_input_with(index, own)
    drop_unread(old)


def _add_behind(site: Site, bias: ir.Value) -> None:
    """``Add(output, bias)`` for everything that read the output of a MatMul."""
    graph, output = site.node.graph, site.output
    if graph is None:
        return
    add = ir.node("Add", [output, bias])
    result = add.outputs[0]
    result.dtype, result.shape = output.dtype, output.shape
    result.name = unique_value_name(graph, f"{output.name}_shifted")
    add.name = result.name
    for use in tuple(output.uses()):
        if use.node is not add:
            use.node.replace_input_with(use.idx, result)
    if output.is_graph_output() and isinstance(graph, ir.Graph):
        output.name, result.name = result.name, output.name
        for index, value in enumerate(graph.outputs):
            if value is output:
                graph.outputs[index] = result
    graph.insert_after(site.node, add)
