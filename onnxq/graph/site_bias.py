"""The bias of a site, and what it becomes when the output of the site is to move by a constant."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph.sites import Site
from onnxq.graph.weights import read_weight

__all__ = ["bias_reader", "moved_bias"]

Array = np.ndarray[Any, Any]

_KINDS = ("Attention", "MatMul", "Gemm", "Conv", "ConvTranspose")


def bias_reader(site: Site) -> tuple[ir.Node, int] | None:
    """The node that adds the constant bias of a site, and the input it takes it through.

    None when there is no bias, or one that is not a number for each output channel.
    """
    if site.bias is None or site.kind not in _KINDS:
        return None
    node = site.bias_node or site.node
    index = next((i for i, value in enumerate(node.inputs) if value is site.bias), None)
    shape = site.bias.shape
    channels = site.shape[site.out_axis] * (site.groups if site.kind == "ConvTranspose" else 1)
    if index is None or shape is None or not shape.is_static():
        return None
    is_scaled_away = site.kind == "Gemm" and not site.node.attributes.get_float("beta", 1.0)
    return None if math.prod(shape.numpy()) != channels or is_scaled_away else (node, index)


def moved_bias(site: Site, shift: Array) -> Array:
    """The bias that moves the output of the weight's product by ``shift`` [channels].

    The output of a Gemm is α · product + β · bias, so its bias moves by α / β · shift.
    """
    if site.bias is None:
        raise ValueError(f"site {site.name!r} has no bias: ask bias_reader first")
    bias = read_weight(site.bias)
    scale = 1.0
    if site.kind == "Gemm" and site.bias_node is None:
        attributes = site.node.attributes
        scale = attributes.get_float("alpha", 1.0) / attributes.get_float("beta", 1.0)
    moved = bias.astype(np.float64) + scale * np.asarray(shift, np.float64).reshape(bias.shape)
    return np.asarray(moved.astype(bias.dtype))
