"""What a model is as shapes: weights that cannot be read, and sizes of activations of samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from onnxq.errors import OnnxqError
from onnxq.graph.data_file import FileTensor
from onnxq.graph.opset import infer_shapes
from onnxq.graph.stage import clone_model
from onnxq.graph.walk import walk_graphs
from onnxq.graph.weights import is_weight, weight_tensor

__all__ = [
    "Sizes",
    "Values",
    "WeightWasRead",
    "held_in_memory",
    "is_lazy",
    "refuse_reading",
    "shadow_of",
]

_SMALL = 1 << 16
"""Weights up to so many bytes (scales of norms, shapes, biases) may be read."""
_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_LOOK_UPS = {"Gather", "GatherND", "GatherBlockQuantized"}
_WIDE = {"Softmax", "Attention", "MultiHeadAttention", "GroupQueryAttention"}

Sample = Mapping[str, "np.ndarray[Any, Any]"]


class WeightWasRead(OnnxqError):
    """A pass asked for the content of a weight that only has a shape."""


class _Shape(ir.LazyTensor):
    """A weight without content."""


def shadow_of(model: ir.Model) -> ir.Model:
    """A copy of the model in which large weights have their shape and type, and no content."""
    copy = clone_model(model)
    for _, graph in walk_graphs(copy):
        if not isinstance(graph, ir.Graph):
            continue
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes > _SMALL:
                shape = ir.Shape(tensor.shape.numpy())
                value.const_value = _Shape(
                    refuse_reading, dtype=tensor.dtype, shape=shape, name=value.name
                )
    return copy


def refuse_reading() -> NoReturn:
    """Compute the content of a weight that has none."""
    raise WeightWasRead("a weight that has no content was read")


def is_lazy(value: ir.Value) -> bool:
    """Whether a pass has given the weight content that is computed when it is read."""
    tensor = weight_tensor(value)
    return isinstance(tensor, ir.LazyTensor) and not isinstance(tensor, _Shape)


def held_in_memory(model: ir.Model) -> int:
    """Bytes of weights that are in memory already, and not in a file."""
    found: dict[int, int] = {}
    for _, graph in walk_graphs(model):
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is not None and not isinstance(
                    tensor, FileTensor | ir.ExternalTensor | ir.LazyTensor
                ):
                    found[id(tensor)] = tensor.nbytes
    return sum(found.values())


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes of values of a model for samples of given shapes.

    Attributes:
        samples: shape of every input, for each sample.
        is_assumed: whether there were no samples, and shapes are a guess.
        counted: inputs that hold whole numbers, which tell how many positions a sample has: a
            cache has more numbers than the text has tokens. All where there are none.
    """

    samples: Sequence[Mapping[str, tuple[int, ...]]]
    is_assumed: bool = False
    counted: frozenset[str] = frozenset()

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Sizes:
        """Those of real samples."""
        held = list(samples)
        counted = {n for one in held for n, array in one.items() if array.dtype.kind in "iu"}
        shapes = [{name: array.shape for name, array in sample.items()} for sample in held]
        return cls(shapes, counted=frozenset(counted))

    @classmethod
    def assumed(cls, model: ir.Model, count: int, length: int) -> Sizes:
        """So many samples of a batch of 1 and ``length`` along every other size that varies.

        Caches are taken as empty: sizes that are named as past.
        """
        shapes, counted = {}, set()
        for value in model.graph.inputs:
            if not value.is_initializer():
                dims = list(value.shape) if value.shape is not None else [None, None]
                sizes = [d if isinstance(d, int) and d > 0 else length for d in dims]
                sizes = [0 if _is_past(d) else n for d, n in zip(dims, sizes, strict=True)]
                if dims and not isinstance(dims[0], int):
                    sizes[0] = 1
                shapes[value.name or ""] = tuple(sizes)
                if value.dtype is not None and value.dtype.is_integer():
                    counted.add(value.name or "")
        return cls([shapes] * count, is_assumed=True, counted=frozenset(counted))

    def bound(self, model: ir.Model) -> Values:
        """Sizes of the values of a model, whose shapes are inferred in place."""
        infer_shapes(model)
        largest = max(self.samples, key=self._positions, default={})
        names: dict[str, int] = {}
        for value in model.graph.inputs:
            for dim, size in zip(
                value.shape or (), largest.get(value.name or "", ()), strict=False
            ):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    names[dim.value] = size
        return Values(names, max((max(s, default=1) for s in largest.values()), default=1))

    @property
    def count(self) -> int:
        """How many samples."""
        return len(self.samples)

    @property
    def tokens(self) -> int:
        """Positions of all samples: of the input with the most of them in each."""
        return sum(self._positions(sample) for sample in self.samples)

    @property
    def share(self) -> float:
        """Mean positions of a sample over those of the largest."""
        largest = max((self._positions(sample) for sample in self.samples), default=1)
        return self.tokens / max(1, largest * self.count)

    @property
    def whole(self) -> float:
        """As many samples of the largest size have as many positions as all samples."""
        return self.count * self.share

    def _positions(self, sample: Mapping[str, tuple[int, ...]]) -> int:
        names = self.counted & sample.keys() or sample.keys()
        return max((math.prod(sample[name]) for name in names), default=1)


@dataclasses.dataclass(frozen=True)
class Values:
    """Sizes of values for one sample, the largest.

    Attributes:
        names: sizes by the name of a dimension.
        other: of a dimension whose name says nothing.
    """

    names: Mapping[str, int]
    other: int

    def elements(self, value: ir.Value) -> int:
        """How many numbers it holds; where nothing is known of it, a guess."""
        return math.prod(self._sizes(value))

    def nbytes(self, value: ir.Value) -> int:
        """Bytes of it."""
        bits = 32 if value.dtype is None or value.dtype.bitwidth == 0 else value.dtype.bitwidth
        return self.elements(value) * bits // 8

    def positions(self, node: ir.Node) -> int:
        """How often a node multiplies its weight: tokens, or pixels of a convolution."""
        sizes = self._sizes(node.outputs[0])
        if node.op_type in _CONVOLUTIONS and len(sizes) > 2:
            return math.prod(sizes) // max(1, sizes[1])
        return math.prod(sizes[:-1])

    def products(self, nodes: Iterable[ir.Node]) -> int:
        """Multiplications with weights that some nodes make, look-ups left out."""
        weights = (
            (node, weight_tensor(value))
            for node in nodes
            if node.op_type not in _LOOK_UPS
            for value in node.inputs
            if value is not None and is_weight(value)
        )
        return sum(self.positions(n) * w.size for n, w in weights if len(w.shape) > 1)

    def working(self, nodes: Sequence[ir.Node]) -> int:
        """Bytes that a runtime needs at once beside the weights: those of the largest node.

        What a node reads and gives, in float32, and the scores of attention.
        """
        return max((self._of_node(node) for node in nodes), default=0)

    def _of_node(self, node: ir.Node) -> int:
        reads = [v for v in node.inputs if v is not None and v.const_value is None]
        size = sum(4 * self.elements(value) for value in {*reads, *node.outputs})
        if node.op_type in _WIDE and node.op_type != "Softmax" and node.inputs[0] is not None:
            names = ("q_num_heads", "num_heads")
            heads = max((node.attributes.get_int(name, 0) for name in names), default=0) or 1
            length = self._sizes(node.inputs[0])[-2] if self._sizes(node.inputs[0])[1:] else 1
            size += 2 * 4 * heads * length**2
        return size

    def _sizes(self, value: ir.Value) -> list[int]:
        if value.shape is None:
            return [self.other]
        sizes = []
        for dim in value.shape:
            if isinstance(dim, int) and dim > 0:
                sizes.append(dim)
            else:
                name = dim.value if isinstance(dim, ir.SymbolicDim) else None
                sizes.append(self.names.get(name or "", self.other))
        return sizes


def _is_past(dim: object) -> bool:
    name = dim.value if isinstance(dim, ir.SymbolicDim) else None
    return name is not None and "past" in name
