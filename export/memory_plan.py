"""How much memory the activations of a model take at once: computed from the graph, nothing is run.

Values are made in the order of the graph, and given back after their last reader. A value of the
same buffer as its source (Reshape and its like) takes none of its own, and an elementwise operator
writes into an input that nobody reads any more, as ONNX Runtime does. What a runtime fuses it need
not keep; what a kernel takes for itself (a packed copy, columns of a convolution) is not seen, and
weights that are dequantized on the way are not counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from onnxq.errors import UnsupportedGraph
from onnxq.export.activation_shapes import with_shapes
from onnxq.graph import is_weight
from onnxq.graph.stage import clone_model
from onnxq.graph.walk import bodies

__all__ = ["MemoryPlan", "memory_plan", "with_sizes"]

_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
_IN_PLACE = frozenset(
    ["Add", "Mul", "Sub", "Div", "Relu", "Sigmoid", "Tanh", "Clip", "LeakyRelu", "Elu", "Neg"]
).union(
    ["Abs", "Exp", "Sqrt", "Erf", "HardSigmoid", "HardSwish", "Softmax", "Where", "Gelu", "Not"],
    ["QuickGelu", "BiasGelu", "FastGelu", "Dropout", "Cast", "Pow", "Floor", "Ceil"],
)
_SHOWN = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Memory of activations, in bytes; inputs of the model are not counted, its outputs are.

    Attributes:
        peak: most at any time.
        at: the node that runs then.
        alive: names and bytes of what is kept then, the largest first.
        unknown: values of unknown size, which are not counted.
    """

    peak: int
    at: str
    alive: tuple[tuple[str, int], ...]
    unknown: tuple[str, ...] = ()


def memory_plan(model: ir.Model, sizes: Mapping[str, int] | None = None) -> MemoryPlan:
    """Plan the memory of one run.

    Args:
        model: left as it is.
        sizes: of dynamic dimensions by name; 1 for those that are called batch.

    Raises:
        UnsupportedGraph: a dynamic dimension has no size.
    """
    fixed = with_sizes(model, sizes or {})
    return _Planner().plan(with_shapes(fixed).graph)


def with_sizes(model: ir.Model, sizes: Mapping[str, int]) -> ir.Model:
    """A copy of a model whose inputs have no dynamic dimension.

    Raises:
        UnsupportedGraph: a dimension has no size.
    """
    fixed = clone_model(model)
    for value in fixed.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape(
                size if isinstance(size, int) else _size(value, str(size.value), sizes)
                for size in value.shape
            )
    for node in fixed.graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape(_known(size, sizes) for size in value.shape)
    return fixed


def _known(size: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | ir.SymbolicDim:
    """A dimension of an inner value: its size when its name has one."""
    return size if isinstance(size, int) else sizes.get(str(size.value), size)


def _size(value: ir.Value, name: str, sizes: Mapping[str, int]) -> int:
    if name in sizes:
        return int(sizes[name])
    if "batch" in name:
        return 1
    raise UnsupportedGraph(
        f"Input {value.name!r} has a dimension {name!r} without a size: give it, as "
        f"{name}=128, to fix the shapes."
    )


class _Planner:
    """Walks one graph; bodies of its nodes are planned by themselves."""

    def __init__(self) -> None:
        self._bytes: dict[ir.Value, int] = {}
        self._buffer: dict[ir.Value, ir.Value] = {}
        self._unknown: list[str] = []

    def plan(self, graph: ir.Graph) -> MemoryPlan:
        """The most that is alive at any node."""
        uses = Counter(self._root(value) for node in graph for value in _read(node))
        uses.update(self._root(value) for value in graph.outputs)
        peak, at = 0, ""
        alive: tuple[tuple[str, int], ...] = ()
        for node in graph:
            inner = max(
                (_Planner().plan(body).peak for _, body in bodies(node)),
                default=0,
            )
            for value in node.outputs:
                self._place(node, value, uses)
            total = sum(self._bytes.values()) + inner
            if total > peak:
                peak, at = total, node.name or node.op_type
                largest = sorted(self._bytes.items(), key=lambda item: -item[1])[:_SHOWN]
                alive = tuple((value.name or "", size) for value, size in largest)
            for value in (*_read(node), *(v for v in node.outputs if not v.uses())):
                self._give_back(value, uses)
        return MemoryPlan(peak=peak, at=at, alive=alive, unknown=tuple(self._unknown))

    def _root(self, value: ir.Value) -> ir.Value:
        """The value whose buffer this one is in."""
        producer = value.producer()
        if producer is not None and producer.op_type in _VIEWS and producer.inputs[0] is not None:
            return self._root(producer.inputs[0])
        return value

    def _place(self, node: ir.Node, value: ir.Value, uses: Counter[ir.Value]) -> None:
        """Give an output a buffer: its own, or that of an input that is read for the last time."""
        if not value.name or self._root(value) is not value:
            return
        if not (value.uses() or value.is_graph_output()) or _is_weight(node):
            return
        size = _nbytes(value)
        if size is None:
            self._unknown.append(value.name)
            return
        if node.op_type in _IN_PLACE:
            for source in (self._root(v) for v in node.inputs if v is not None):
                if self._bytes.get(source) == size and uses[source] == 1:
                    self._bytes[source] = 0
                    break
        self._bytes[value] = size

    def _give_back(self, value: ir.Value, uses: Counter[ir.Value]) -> None:
        root = self._root(value)
        uses[root] -= 1
        if uses[root] <= 0:
            self._bytes.pop(root, None)


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, with what its bodies read from outside."""
    yield from (value for value in node.inputs if value is not None)
    for _, body in bodies(node):
        inside = {value for inner in body for value in inner.outputs} | set(body.inputs)
        for inner in body:
            yield from (value for value in _read(inner) if value not in inside)


def _is_weight(node: ir.Node) -> bool:
    """Whether a node only dequantizes a stored weight."""
    return node.op_type == "DequantizeLinear" and is_weight(node.inputs[0])


def _nbytes(value: ir.Value) -> int | None:
    """Bytes of a value; None when its shape or type is not known."""
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        return None
    return math.ceil(math.prod(int(size) for size in value.shape.numpy()) * value.dtype.itemsize)
