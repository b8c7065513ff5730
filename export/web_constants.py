"""What of a model depends on constants only, and is read by what does not."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import is_weight
from onnxq.graph.walk import bodies
from onnxq.graph.weights import weight_tensor

__all__ = ["computed_constants", "has_quantized_activations"]

_RANDOM = frozenset(
    [
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    ]
)


def computed_constants(model: ir.Model, least: int) -> list[ir.Value]:
    """Values of the main graph that constant nodes compute for others, in graph order.

    Where ONNX Runtime makes integer products of QDQ pairs, DequantizeLinear is left to it.

    Args:
        model: a weight of at least ``least`` bytes that readers of both kinds share becomes a
            value that is computed, by an Identity: then it need not be stored twice.
        least: in bytes.
    """
    keeps_pairs = has_quantized_activations(model)
    constant: set[ir.Value | None] = {None}
    constant |= {value for value in model.graph.initializers.values() if is_weight(value)}
    inside: set[ir.Node] = set()
    for node in model.graph:
        if node.op_type in _RANDOM or any(True for _ in bodies(node)):
            continue
        if node.op_type == "DequantizeLinear" and keeps_pairs:
            continue
        is_output = any(value.is_graph_output() for value in node.outputs)
        if not is_output and all(value in constant for value in node.inputs):
            constant.update(node.outputs)
            inside.add(node)
    for value in list(model.graph.initializers.values()):
        _share(model, value, inside, least)
    return [
        value
        for node in model.graph
        if node in inside
        for value in node.outputs
        if any(use.node not in inside for use in value.uses())
    ]


def has_quantized_activations(model: ir.Model) -> bool:
    """Whether a QuantizeLinear reads what is computed as the model runs."""
    return any(
        node.op_type == "QuantizeLinear" and not is_weight(node.inputs[0]) for node in model.graph
    )


def _share(model: ir.Model, value: ir.Value, inside: set[ir.Node], least: int) -> None:
    if not is_weight(value):
        return
    uses = list(value.uses())
    outside = [use for use in uses if use.node not in inside]
    if len(outside) in (0, len(uses)) or weight_tensor(value).nbytes < least:
        return
    node = ir.node("Identity", [value], name=f"{value.name}_shared")
    shared = node.outputs[0]
    shared.name, shared.shape, shared.type = f"{value.name}_shared", value.shape, value.type
    model.graph.insert_before(model.graph[0], node)
    for use in outside:
        use.node.replace_input_with(use.idx, shared)
    inside.add(node)
