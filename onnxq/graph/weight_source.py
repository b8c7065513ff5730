"""Follow a value back to the stored weight it is a view of.

Exporters rarely hand a weight to its node directly: torch writes ``Transpose(weight)``, genai's
builder looks up a tied embedding in ``Transpose(lm_head)``, a half-precision file casts, and a
quantized one dequantizes. `trace` walks back over such views, and says which axis of the stored
tensor each axis of the value comes from, or why the value is not a weight.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import onnx_ir as ir

from onnxq.graph.weights import is_weight, read_weight, weight_tensor

__all__ = ["WeightSource", "scalar", "stored_weight", "trace"]

_DEPTH = 16
_LIMIT = 256
_SAME_AXES = frozenset(["Identity", "Cast", "CastLike", "DequantizeLinear", "QuantizeLinear"])
_RESHAPES = frozenset(["Reshape", "Unsqueeze", "Squeeze", "Flatten"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightSource:
    """Where a value comes from.

    Attributes:
        value: the stored weight (initializer or Constant output); None when there is none.
        axes: for each axis of the traced value, the axis of the stored tensor it is, or None
            for an axis of length 1 that a reshape added.
        via: the nodes between, first the one that reads the stored weight.
        already: how the stored tensor is already quantized; None when it holds real numbers.
        reason: why the weight cannot be read; None when it can.
    """

    value: ir.Value | None = None
    axes: tuple[int | None, ...] = ()
    via: tuple[ir.Node, ...] = ()
    already: str | None = None
    reason: str | None = None


def trace(value: ir.Value | None) -> WeightSource:
    """Find the stored weight behind ``value``, over transposes, reshapes, casts and QDQ nodes."""
    if value is None:
        return WeightSource(reason="it has no weight: the input is left empty")
    here, via = _walk(value)
    if not is_weight(here):
        return WeightSource(reason=_why_not(here))
    return _through(here, via)


def stored_weight(value: ir.Value | None) -> ir.Value | None:
    """The stored weight that `trace` finds, or None; cheaper, as it asks for nothing else."""
    if value is None:
        return None
    here, _ = _walk(value)
    return here if is_weight(here) else None


def _walk(value: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]]:
    """Where the views before ``value`` begin, and the views, the first one first."""
    views: list[ir.Node] = []
    here = value
    while len(views) < _DEPTH:
        producer = here.producer()
        if producer is None or not _is_view(producer):
            break
        views.append(producer)
        first = producer.inputs[0]
        if first is None:
            break
        here = first
    return here, tuple(reversed(views))


def scalar(value: ir.Value | None) -> float | None:
    """The number a one-element weight holds; None for any other value."""
    source = trace(value)
    if source.value is None or weight_tensor(source.value).size != 1:
        return None
    return float(read_weight(source.value).reshape(()))


def _is_view(node: ir.Node) -> bool:
    known = node.op_type in _SAME_AXES or node.op_type in _RESHAPES or node.op_type == "Transpose"
    return known and node.domain in ("", "com.microsoft") and len(node.inputs) > 0


def _through(stored: ir.Value, via: tuple[ir.Node, ...]) -> WeightSource:
    """Carry the axes of the stored tensor forward through the views."""
    shape = [int(size) for size in weight_tensor(stored).shape.numpy()]
    axes: list[int | None] = list(range(len(shape)))
    for node in via:
        if node.op_type == "Transpose":
            attribute = node.attributes.get("perm")
            order = attribute.as_ints() if attribute else range(len(shape))[::-1]
            axes = [axes[i] for i in order]
            shape = [shape[i] for i in order]
        elif node.op_type in _RESHAPES:
            target = _static_shape(node, shape)
            moved = None if target is None else _match_axes(shape, axes, target)
            if target is None or moved is None:
                return WeightSource(
                    value=stored,
                    via=via,
                    already=_how_quantized(stored, via),
                    reason=f"its weight {stored.name!r} is reshaped by {_name(node)} "
                    "in a way that mixes its axes",
                )
            axes, shape = moved, target
    return WeightSource(
        value=stored, axes=tuple(axes), via=via, already=_how_quantized(stored, via)
    )


def _static_shape(node: ir.Node, shape: Sequence[int]) -> list[int] | None:
    """The shape after a reshape of ``shape``, when it is known."""
    if node.op_type == "Reshape" and len(node.inputs) > 1 and is_weight(node.inputs[1]):
        assert_known = node.inputs[1]
        wanted = [int(size) for size in read_weight(assert_known)] if assert_known else []
        wanted = [
            shape[i] if size == 0 and i < len(shape) else size for i, size in enumerate(wanted)
        ]
        if wanted.count(-1) == 1:
            rest = math.prod(size for size in wanted if size != -1)
            wanted[wanted.index(-1)] = math.prod(shape) // rest if rest else 0
        return wanted
    result = node.outputs[0].shape
    if result is None or not result.is_static():
        return None
    return [int(size) for size in result.numpy()]


def _match_axes(
    shape: Sequence[int], axes: Sequence[int | None], target: Sequence[int]
) -> list[int | None] | None:
    """Axes after a reshape that only adds or drops axes of length 1; None when it mixes axes."""
    kept = [(size, axis) for size, axis in zip(shape, axes, strict=True) if size != 1]
    if [size for size, _ in kept] != [size for size in target if size != 1]:
        return None
    rest = iter([axis for _, axis in kept])
    return [None if size == 1 else next(rest) for size in target]


def _how_quantized(stored: ir.Value, via: Sequence[ir.Node]) -> str | None:
    kinds = {node.op_type for node in via}
    if "DequantizeLinear" not in kinds:
        return None
    if "QuantizeLinear" in kinds:
        return "QuantizeLinear and DequantizeLinear on a float weight"
    node = next(node for node in via if node.op_type == "DequantizeLinear")
    block = node.attributes.get("block_size")
    blocks = f", blocks of {block.as_int()}" if block is not None and block.as_int() else ""
    return f"{weight_tensor(stored).dtype.name.lower()} behind DequantizeLinear{blocks}"


def _why_not(value: ir.Value) -> str:
    producer = value.producer()
    if producer is not None:
        constant = " from constants only: fold constants first" if _only_constants(producer) else ""
        return f"its weight is computed by {_name(producer)}{constant}"
    graph = value.graph
    if graph is not None and value.is_graph_input():
        if value.is_initializer():
            return f"its weight {value.name!r} is also a model input, which a caller may override"
        if not graph.name:  # the body of a function: only those have no name
            return f"its weight is the input {value.name!r} of a function: inline functions first"
        return f"its weight is the input {value.name!r} of the graph {graph.name!r}"
    return f"its weight {value.name!r} is given by nothing in the model"


def _only_constants(node: ir.Node) -> bool:
    """Whether everything before the node is constant."""
    queue, seen = [node], {node}
    while queue:
        here = queue.pop()
        given = [value for value in here.inputs if value is not None]
        if not given or any(attribute.type in _GRAPHS for attribute in here.attributes.values()):
            return False
        for value in given:
            producer = value.producer()
            if is_weight(value) or (producer is not None and producer in seen):
                continue
            if producer is None or len(seen) > _LIMIT:
                return False
            seen.add(producer)
            queue.append(producer)
    return True


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _name(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}"
