"""What an operator for matrix products with stored weights says of itself.

``Y = Op<rows = N, columns = K, ...>(A, arrays...)`` is ``A · Wᵀ`` for A [..., K] and the weight
W [N, K] that the arrays, packed as they are stored, stand for in some format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxq.custom_ops.functions import DOMAIN, add_function
from onnxq.formats import Format
from onnxq.graph.names import unique_value_name

__all__ = ["OperatorSpec"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatorSpec:
    """One operator.

    Attributes:
        name: its type in domain ``onnxq``.
        formats: the classes of formats whose weights it multiplies with.
        arrays: names of the packed arrays of such a format, in the order of the inputs behind A;
            all of them are there, for a function cannot ask for one that is not.
        attributes: the integer attributes of a node for a format and a weight of (rows, columns);
            ``rows`` and ``columns`` are among them.
        body: its meaning, as ONNX text in standard operators from the name on.
        lowest_opset: the first opset whose operators the text is written in.
        summary: what it computes and how exactly, for the catalogue.
        kernels: the instruction sets with kernels of their own.
        refusal: why it cannot multiply with a weight of a format and shape, as a clause; None
            when it can.
        placeholders: arrays that stand where a format has none.
    """

    name: str
    formats: tuple[type[Format], ...]
    arrays: tuple[str, ...]
    attributes: Callable[[Format, tuple[int, int]], dict[str, int]]
    body: str
    lowest_opset: int
    summary: str
    kernels: tuple[str, ...] = ()
    refusal: Callable[[Format, tuple[int, int]], str | None] = lambda fmt, shape: None
    placeholders: Mapping[str, npt.NDArray[Any]] = dataclasses.field(default_factory=dict)

    def stored(self, packed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The arrays behind A of a packed weight, in their order."""
        return {
            name: packed[name] if name in packed else self.placeholders[name]
            for name in self.arrays
        }

    def node(
        self,
        model: ir.Model,
        value: ir.Value,
        arrays: Mapping[str, ir.Value],
        fmt: Format,
        shape: tuple[int, int],
        *,
        name: str,
    ) -> ir.Node:
        """A node that multiplies ``value`` with a stored weight, in no graph yet.

        The model gets the function once.

        Args:
            model: the node is for it.
            value: A, float32 or float16 ``[..., columns]``.
            arrays: the packed arrays by name, as values of the graph.
            fmt: their format.
            shape: (rows, columns) of the weight.
            name: of the node; its output is ``name`` with ``_output``.

        Raises:
            UnsupportedGraph: the model is in an older opset than the function.
        """
        add_function(model, self.name, self.body, lowest_opset=self.lowest_opset)
        node = ir.node(
            self.name,
            [value, *(arrays[array] for array in self.arrays)],
            attributes=self.attributes(fmt, shape),
            domain=DOMAIN,
            name=name,
        )
        output = node.outputs[0]
        output.name = unique_value_name(model.graph, f"{name}_output")
        output.type = value.type
        if value.shape is not None:
            output.shape = ir.Shape([*value.shape[:-1], shape[0]])
        return node
