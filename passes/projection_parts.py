"""Output channels of a projection as a projection of their own: for passes that split one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph.sites import Site
from onnxq.graph.weights import add_weight, is_weight, read_weight, weight_tensor
from onnxq.passes.match import home_of
from onnxq.passes.preconditions import cut_refusal, shared_refusal

__all__ = ["PART", "channels_of", "part_refusal", "width_of"]

Array = np.ndarray[Any, Any]

PART = "onnxq.part"
"""Key of the metadata of a node that says which part of a layer it is."""


def part_refusal(site: Site) -> str | None:
    """What stands in the way of parts of the weight, as a clause; None when nothing does."""
    reason = cut_refusal(site)
    if reason is not None or site.weight is None:
        return reason
    if site.weight_index != 1 or len(site.shape) != 2:
        return "its weight is not a matrix on the right"
    reason = shared_refusal(site.weight)
    if reason is not None:
        return reason
    if site.kind == "Gemm" and len(site.node.inputs) > 2 and site.node.inputs[2] is not None:
        bias = site.node.inputs[2]
        if not is_weight(bias) or width_of(bias) != site.shape[site.out_axis]:
            return "its bias is not a constant with a number for each channel"
    return None


def width_of(value: ir.Value) -> int:
    """Numbers of a constant with one axis that is not 1; 0 for others."""
    sizes = [int(size) for size in weight_tensor(value).shape.numpy()]
    return int(np.prod(sizes)) if sizes and sizes[-1] == int(np.prod(sizes)) else 0


def channels_of(
    model: ir.Model,
    node: ir.Node,
    value: ir.Value,
    site: Site,
    channels: slice | Array,
    at: int,
) -> ir.Value:
    """Some output channels of a weight or bias as a weight of its own, picked when it is read.

    Args:
        model: gets the new weight.
        node: of the site.
        value: the weight, or the bias.
        site: that it belongs to.
        channels: which, in this order.
        at: 1 for the weight; for a bias its input of the node.
    """
    tensor = weight_tensor(value)
    stored = ir.Value(name=value.name, const_value=tensor)
    axis = site.out_axis if at == 1 else len(tensor.shape) - 1
    shape = [int(n) for n in tensor.shape.numpy()]
    shape[axis] = len(np.arange(shape[axis])[channels])
    first = channels.start if isinstance(channels, slice) else int(channels[0])

    def compute() -> Array:
        picked: list[slice | Array] = [slice(None)] * len(shape)
        picked[axis] = channels
        return np.ascontiguousarray(read_weight(stored)[tuple(picked)])

    return add_weight(
        home_of(model, node),
        f"{value.name}_{first}",
        shape=shape,
        dtype=tensor.dtype,
        compute=compute,
    )
