"""The attention that each token of a sequence receives in a layer, computed by the layer itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from onnxq.calibration.segment_model import open_segment
from onnxq.errors import CalibrationError
from onnxq.graph.attention import AttentionBlock
from onnxq.graph.flow import origin
from onnxq.graph.stage import clone_model
from onnxq.graph.topology import Topology
from onnxq.graph.weights import add_weight
from onnxq.runtime import Session

__all__ = ["LayerAttention", "ReceivedAttention"]

_PROBABILITIES = {
    "GroupQueryAttention": ("qk_output", 2),
    "Attention": ("qk_matmul_output_mode", 3),
}
"""Fused operators that can return their probabilities (as output 3), and how to ask for them."""


@dataclasses.dataclass(frozen=True, eq=False)
class LayerAttention:
    """The attention of one layer.

    Attributes:
        model: a copy of the network in which ``probabilities`` is a value.
        probabilities: ``[..., queries, keys]``, summed over heads by the model: its name.
    """

    model: ir.Model
    probabilities: ir.Value

    def open(self, boundary: Mapping[ir.Value, np.ndarray], threads: int | None) -> Session:
        """A session from the boundary (values of the original) to the probabilities."""
        own = {value.name: value for node in self.model.graph for value in node.outputs}
        own.update({value.name: value for value in self.model.graph.inputs})
        edges = {own[value.name]: array for value, array in boundary.items()}
        return open_segment(self.model, edges, [self.probabilities], {}, threads)

    def sum(self, result: Mapping[str, np.ndarray], mask: np.ndarray | None) -> np.ndarray | None:
        """What each token receives from the queries that are no padding, [batch, length]."""
        given = result[self.probabilities.name or ""]
        if mask is None or given.ndim != 3:
            return None
        length = mask.shape[1]
        if given.shape[0] != mask.shape[0] or min(given.shape[1:]) < length:
            return None
        tokens = given[:, -length:, -length:].astype(np.float64)
        return np.asarray(np.einsum("bqk,bq->bk", tokens, mask))


class ReceivedAttention:
    """The attention layers of a network, each with the sites before it.

    Attributes:
        values: results of the attention, which have to be computed for it.
    """

    def __init__(self, model: ir.Model) -> None:
        """Find the attention blocks.

        Raises:
            CalibrationError: there is none, or one whose probabilities cannot be had.
        """
        blocks = [block for block in Topology(model).attention if _is_over_own_tokens(block)]
        if not blocks:
            raise CalibrationError(
                f"The main graph of {model.graph.name!r} has no attention that was recognized, so "
                "tokens cannot be weighted by the attention they receive: choose other token "
                "weights."
            )
        self.values = tuple(block.node.outputs[0] for block in blocks)
        self._copy = clone_model(model)
        nodes = {node.outputs[0].name: node for node in self._copy.graph}
        self._layers: dict[ir.Node, LayerAttention] = {}
        for block in blocks:
            if block.node.graph is not model.graph:
                continue
            summed = _summed(self._copy, nodes[block.node.outputs[0].name], block)
            self._layers[block.q_parts[0].node] = LayerAttention(self._copy, summed)

    def of(self, nodes: Iterable[ir.Node]) -> LayerAttention | None:
        """The attention whose query projection is among ``nodes``; None when there is none.

        Raises:
            CalibrationError: there are several, so tokens have no one weight.
        """
        found = [self._layers[node] for node in nodes if node in self._layers]
        if len(found) > 1:
            raise CalibrationError(
                f"{len(found)} attention layers lie between two cuts, and the weight of a token is "
                "that of its layer: cut at 'blocks' or 'sites' to weight tokens by attention."
            )
        return found[0] if found else None


def _is_over_own_tokens(block: AttentionBlock) -> bool:
    """Whether queries and keys are projected from the same tokens (no cross-attention)."""
    if not block.q_parts or not block.k_parts:
        return False
    return len({origin(site.input) for site in (*block.q_parts, *block.k_parts)}) == 1


def _summed(model: ir.Model, node: ir.Node, block: AttentionBlock) -> ir.Value:
    """A new value of the copy: the probabilities summed over heads, [batch, queries, keys]."""
    if node.op_type == "Softmax":
        probabilities = node.outputs[0]
    elif node.op_type in _PROBABILITIES and (node.op_type != "Attention" or node.domain == ""):
        name, mode = _PROBABILITIES[node.op_type]
        node.attributes.add(ir.AttrInt64(name, mode))
        node.resize_outputs(max(4, len(node.outputs)))
        probabilities = node.outputs[3]
        probabilities.name = probabilities.name or f"{node.outputs[0].name}_onnxq_probabilities"
    else:
        raise CalibrationError(
            f"Attention {block.name!r} is a fused {node.op_type}, which does not give its "
            "probabilities: choose other token weights, or use a model whose attention is not "
            "fused."
        )
    made = ir.Value(name=f"{probabilities.name}_received")
    inputs, attributes = [probabilities], [ir.AttrInt64("keepdims", 0)]
    if model.opset_imports.get("", 13) < 13:  # ReduceSum had its axes as an attribute then
        attributes.append(ir.AttrInt64s("axes", [1]))
    else:
        axes = np.array([1], np.int64)
        name = f"{probabilities.name}_axes"
        inputs.append(
            add_weight(model.graph, name, shape=(1,), dtype=ir.DataType.INT64, compute=axes)
        )
    total = ir.Node("", "ReduceSum", inputs, attributes=attributes, outputs=[made])
    model.graph.insert_after(node, total)
    return made
