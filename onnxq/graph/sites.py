"""Every place of a model where a weight acts as a linear map.

A site is one weight of one node: a MatMul with a constant operand, a Gemm, a convolution, an
embedding lookup, or one of the fused and integer operators that ONNX Runtime's tools write. Sites
are found in the main graph, in bodies of If, Loop and Scan, and in functions. A MatMul of two
computed values (attention scores) is listed too, with the reason why it has no weight.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import onnx_ir as ir

from onnxq.graph.site_slots import Slot, slots_of
from onnxq.graph.walk import is_operator_body, site_name, walk_nodes
from onnxq.graph.weight_source import WeightSource, stored_weight, trace
from onnxq.graph.weights import is_weight, weight_tensor

__all__ = ["Site", "find_sites"]

_CONVOLUTIONS = frozenset(
    [
        "Conv",
        "FusedConv",
        "NhwcFusedConv",
        "ConvTranspose",
        "DeformConv",
        "ConvInteger",
        "QLinearConv",
    ]
)
_MATRICES = frozenset(["MatMul", "FusedMatMul", "FusedMatMulActivation"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """One weight of one node.

    A site whose ``refusal`` and ``already`` are both None has a float weight that can be read
    with `onnxq.graph.weights.read_weight`, and valid axes.

    Attributes:
        node: the node that multiplies by the weight.
        name: unique in the model: node name behind the path of its body or function, with
            ``:label`` when a node has several weights.
        kind: the operator type of the node.
        weight: the stored weight (initializer or Constant output), which may be a float tensor
            or, when ``already`` is set, the integer one; None when it is not constant.
        weight_index: the input of the node through which the weight comes.
        in_axis: axis of the *stored* tensor that is summed over; transB and transposes on the
            way are taken in. For an embedding: the width.
        out_axis: axis of the stored tensor with one entry for each output feature. For an
            embedding: one for each token, so that a tied lm_head has the same axes.
        groups: of a convolution; then in_axis (of ConvTranspose: out_axis) has 1/groups of the
            channels.
        bias: constant added to the result: the node's own, or that of ``bias_node``.
        bias_node: the Add behind a MatMul or Conv; None when the bias is the node's own.
        input: the activation the weight multiplies; the indices of an embedding.
        output: first output of the node, before ``bias_node``.
        already: how the weight is already quantized; None when it is not.
        refusal: why the weight cannot be read or changed; None when it can.
        via: nodes between the stored weight and the node, the first reads the stored weight.
        path: path of the graph the node is in, as `onnxq.graph.walk` gives it.
    """

    node: ir.Node
    name: str
    kind: str
    weight: ir.Value | None
    weight_index: int
    in_axis: int
    out_axis: int
    groups: int
    bias: ir.Value | None
    bias_node: ir.Node | None
    input: ir.Value | None
    output: ir.Value
    already: str | None
    refusal: str | None
    via: tuple[ir.Node, ...] = ()
    path: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored weight tensor; empty when there is none."""
        if self.weight is None:
            return ()
        return tuple(int(size) for size in weight_tensor(self.weight).shape.numpy())

    @property
    def result(self) -> ir.Value:
        """The value with the bias added: of ``bias_node`` when there is one."""
        return self.output if self.bias_node is None else self.bias_node.outputs[0]

    @property
    def is_embedding(self) -> bool:
        """Whether the weight is looked up and not multiplied."""
        return self.kind in ("Gather", "GatherBlockQuantized")


def find_sites(model: ir.Model) -> list[Site]:
    """List every site in graph order: the main graph, its bodies, then functions.

    Functions that define an operator of onnxq hold none.
    """
    sites: list[Site] = []
    taken: set[str] = set()
    for path, node in walk_nodes(model):
        if node.op_identifier() in model.functions or is_operator_body(path):
            continue
        for slot in slots_of(node):
            name = site_name(path, node) + (f":{slot.label}" if slot.label else "")
            unique, count = name, 1
            while unique in taken:
                count += 1
                unique = f"{name}#{count}"
            taken.add(unique)
            sites.append(_site(path, unique, node, slot))
    return sites


def _site(path: str, name: str, node: ir.Node, slot: Slot) -> Site:
    source = trace(_input(node, slot.weight))
    axes, reason = _stored_axes(node, source, slot)
    bias, bias_node = _bias(node, slot, source, axes)
    return Site(
        node=node,
        name=name,
        kind=node.op_type,
        weight=source.value,
        weight_index=slot.weight,
        in_axis=axes[0],
        out_axis=axes[1],
        groups=slot.groups,
        bias=bias,
        bias_node=bias_node,
        input=_input(node, slot.input),
        output=node.outputs[0],
        already=slot.already or source.already,
        refusal=slot.refusal or reason,
        via=source.via,
        path=path,
    )


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _stored_axes(
    node: ir.Node, source: WeightSource, slot: Slot
) -> tuple[tuple[int, int], str | None]:
    """The (in, out) axes of the stored tensor, and why they have no meaning when they have not."""
    if source.value is None or source.reason is not None:
        return slot.axes, source.reason
    rank = len(source.axes)
    if rank < 2:
        return (0, 0), f"its weight {source.value.name!r} is no matrix: it has {rank} axes"
    in_axis, out_axis = source.axes[slot.axes[0]], source.axes[slot.axes[1]]
    if in_axis is None or out_axis is None:
        # A unit axis that a reshape added stands for any unit axis of the stored tensor; without
        # one there is no such axis to name.
        return (0, 0), f"its weight {source.value.name!r} is a vector made a matrix by a reshape"
    shape = weight_tensor(source.value).shape.numpy()
    if math.prod(shape) == 0:
        return (in_axis, out_axis), f"its weight {source.value.name!r} is empty: {list(shape)}"
    return (in_axis, out_axis), _matrix_refusal(node, source.value, shape, in_axis, out_axis)


def _matrix_refusal(
    node: ir.Node, weight: ir.Value, shape: Sequence[int], in_axis: int, out_axis: int
) -> str | None:
    if node.op_type not in _MATRICES:
        return None
    others = [size for axis, size in enumerate(shape) if axis not in (in_axis, out_axis)]
    if math.prod(others) != 1:
        return f"its weight {weight.name!r} is a batch of matrices: {list(shape)}"
    if shape[in_axis] == 1:
        return f"it is an outer product, which sums over nothing: {weight.name!r} {list(shape)}"
    return None


def _bias(
    node: ir.Node, slot: Slot, source: WeightSource, axes: tuple[int, int]
) -> tuple[ir.Value | None, ir.Node | None]:
    """The node's own bias, or the constant of the only reader when that is a fitting Add."""
    if slot.bias is not None:
        own = _input(node, slot.bias)
        if own is not None:
            return stored_weight(own), None
    if source.value is None or source.reason is not None or node.outputs[0].is_graph_output():
        return None, None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or uses[0].node.domain != "":
        return None, None
    add, index = uses[0].node, uses[0].idx
    constant = trace(add.inputs[1 - index])
    if constant.value is None or not is_weight(constant.value) or constant.reason is not None:
        return None, None
    features = int(weight_tensor(source.value).shape.numpy()[axes[1]])
    if node.op_type == "ConvTranspose":
        features *= slot.groups
    fits = _adds_per_feature(node, slot, constant, features)
    return (constant.value, add) if fits else (None, None)


def _adds_per_feature(node: ir.Node, slot: Slot, constant: WeightSource, features: int) -> bool:
    """Whether the constant has one value for each output feature and broadcasts over the rest."""
    if constant.value is None or node.op_type in ("Gather", "GatherBlockQuantized"):
        return False
    stored = weight_tensor(constant.value).shape.numpy()
    shape = [1 if axis is None else int(stored[axis]) for axis in constant.axes]
    if node.op_type in _CONVOLUTIONS:
        kernel = node.inputs[slot.weight]
        rank = len(trace(kernel).axes)
        behind = rank - 2
    else:
        behind = 1 if slot.weight == 0 else 0
    at = len(shape) - 1 - behind
    return at >= 0 and shape[at] == features and math.prod(shape) == features
