"""What a node of an operator gives its kernel of PTX: which one, the integers, the blocks.

A kernel takes the inputs of the node, the number of tokens and these integers, then Y; its
parameters are in ``<op>_ptx.cu``. Attributes, shapes and types are all that is read here, so that
it is tested without TensorRT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxq.custom_ops.hadamard import HADAMARD
from onnxq.custom_ops.matmul_codebook import MATMUL_CODEBOOK
from onnxq.custom_ops.matmul_e8p import MATMUL_E8P
from onnxq.custom_ops.matmul_int import MATMUL_INT
from onnxq.custom_ops.matmul_lut import MATMUL_LUT
from onnxq.custom_ops.matmul_ternary import MATMUL_TERNARY
from onnxq.custom_ops.matmul_trellis import MATMUL_TRELLIS
from onnxq.errors import UnsupportedGraph

__all__ = ["PLUGINS", "Launch", "PluginNode", "blocks_of", "launch_of", "stem_of"]

_BITS = (2, 3, 4)
_FEW, _TILE = 8, 64
_ROWS_OF_ONE, _ROWS_OF_FEW, _TOKENS_OF_FEW = 4, 2, 4
HADAMARD_SHARED = 48 * 1024
"""Bytes of shared memory that a kernel gets without asking for more, which PTX cannot."""

Shape = Sequence[int]
Attributes = Mapping[str, int]
Extra = tuple[int | None, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PluginNode:
    """An operator as a plugin sees it.

    Attributes:
        inputs: their names.
        types: of each input, as custom_ops/tensorrt/operators.h writes them: ``a`` that of Y,
            float32 or float16; ``u`` uint8, handed over as int8; ``i`` int8; ``h`` float16; ``s``
            float32 or float16; ``t`` int8 or float16.
        attributes: names of its integers.
        launch: (variant of the kernel, integers behind those that all products have) for
            attributes, shapes of the inputs and whether each is float16.
    """

    inputs: tuple[str, ...]
    types: str
    attributes: tuple[str, ...]
    launch: Callable[[Attributes, Sequence[Shape], Sequence[bool]], Extra]

    def result_shape(self, first: Sequence[Any], attributes: Attributes) -> list[Any]:
        """The shape of Y for that of the first input, whose sizes may be expressions."""
        return [*first[:-1], attributes["rows"]] if "rows" in self.attributes else list(first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """How a node is started.

    Attributes:
        kernel: the entry of the PTX of its operator.
        integers: what the kernel takes behind the number of tokens, or all there is (Hadamard).
        rows: of Y that blocks share, or 0: a block for each row of X.
        threads: of a block.
        shared: bytes of memory that a block asks for as it starts.
    """

    kernel: str
    integers: tuple[int, ...]
    rows: int = 0
    threads: int = 128
    shared: int = 0


def launch_of(
    name: str, attributes: Attributes, shapes: Sequence[Shape], halves: Sequence[bool]
) -> Launch:
    """How a node is started.

    Args:
        name: the operator.
        attributes: its integers.
        shapes: of the inputs; of the first only the last axis is read.
        halves: whether an input is float16.

    Raises:
        UnsupportedGraph: there is no kernel for it.
    """
    element = "f16" if halves[0] else "f32"
    variant, integers = PLUGINS[name].launch(attributes, shapes, halves)
    middle = "" if variant is None else f"_{variant}"
    kernel = f"onnxq_{stem_of(name)}{middle}_{element}"
    if name == HADAMARD:
        shared = 4 * attributes["size"]
        return Launch(kernel=kernel, integers=integers, threads=256, shared=shared)
    every = (attributes["rows"], attributes["columns"], attributes["activation_bits"])
    return Launch(kernel=kernel, integers=(*every, *integers), rows=attributes["rows"])


def stem_of(name: str) -> str:
    """The name of an operator in names of files and kernels."""
    return "hadamard" if name == HADAMARD else f"matmul_{name.removeprefix('MatMul').lower()}"


def blocks_of(
    launch: Launch, tokens: Any, divided_up: Callable[[Any, int], Any]
) -> tuple[Any, Any]:
    """The grid of blocks for a number of tokens, which may be an expression.

    Args:
        launch: of the node.
        tokens: an integer, or what stands for one: comparisons give 0 or 1.
        divided_up: ``tokens`` divided by an integer and rounded up.
    """
    if not launch.rows:
        return tokens, 1
    one, few = tokens == 1, tokens < _FEW + 1
    down = [-(-launch.rows // rows) for rows in (_ROWS_OF_ONE, _ROWS_OF_FEW, _TILE)]
    many = few == 0
    across = one * down[0] + (few - one) * down[1] + many * down[2]
    return across, few * divided_up(tokens, _TOKENS_OF_FEW) + many * divided_up(tokens, _TILE)


def _hadamard(attributes: Attributes, shapes: Sequence[Shape], halves: Sequence[bool]) -> Extra:
    size, order = attributes["size"], shapes[1][0]
    if 4 * size > HADAMARD_SHARED:
        raise UnsupportedGraph(
            f"Hadamard of size {size} needs {4 * size} bytes of shared memory, and a plugin in "
            f"Python has {HADAMARD_SHARED}: take the plugins in C++, plugins=onnxq."
        )
    return None, (order, size // order)


def _int(attributes: Attributes, shapes: Sequence[Shape], halves: Sequence[bool]) -> Extra:
    _, _, scales, ratios, zeros = shapes
    bits, columns = attributes["bits"], attributes["columns"]
    group = min(attributes["group"], columns)
    groups = -(-columns // group)
    has_ratios = tuple(ratios) != (1, 1) or (attributes["rows"], groups) == (1, 1)
    integers = (group, *scales, zeros[0], bits, attributes["signed"], halves[2], has_ratios)
    return bits if bits in _BITS else 0, tuple(map(int, integers))


def _lut(attributes: Attributes, shapes: Sequence[Shape], halves: Sequence[bool]) -> Extra:
    _, _, lut, scales = shapes
    bits = attributes["bits"]
    integers = (attributes["group"], *lut[:2], *scales, bits, halves[2])
    return bits if bits in _BITS else 0, tuple(map(int, integers))


def _codebook(attributes: Attributes, shapes: Sequence[Shape], halves: Sequence[bool]) -> Extra:
    names = ("block_rows", "block_columns", "bits", "books")
    integers = (attributes["group"], shapes[3][0], *(attributes[name] for name in names))
    return attributes["dimension"], integers


def _e8p(attributes: Attributes, shapes: Sequence[Shape], halves: Sequence[bool]) -> Extra:
    return attributes["bits"], (shapes[2][0],)


def _ternary(attributes: Attributes, shapes: Sequence[Shape], halves: Sequence[bool]) -> Extra:
    group = min(attributes["group"], attributes["columns"])
    return None, (group, shapes[2][0], attributes["planes"], int(halves[2]))


def _trellis(attributes: Attributes, shapes: Sequence[Shape], halves: Sequence[bool]) -> Extra:
    return attributes["code"], (shapes[2][0], attributes["step_bits"], attributes["state_bits"])


PLUGINS: Mapping[str, PluginNode] = {
    "MatMulInt": PluginNode(
        inputs=("A", *MATMUL_INT.arrays),
        types="ausiu",
        attributes=("rows", "columns", "bits", "group", "signed", "activation_bits"),
        launch=_int,
    ),
    "MatMulLut": PluginNode(
        inputs=("A", *MATMUL_LUT.arrays),
        types="auth",
        attributes=("rows", "columns", "bits", "group", "activation_bits"),
        launch=_lut,
    ),
    "MatMulCodebook": PluginNode(
        inputs=("A", *MATMUL_CODEBOOK.arrays),
        types="auih",
        attributes=(
            *("rows", "columns", "dimension", "bits", "books", "group"),
            *("block_rows", "block_columns", "activation_bits"),
        ),
        launch=_codebook,
    ),
    "MatMulE8P": PluginNode(
        inputs=("A", *MATMUL_E8P.arrays),
        types="auh",
        attributes=("rows", "columns", "bits", "activation_bits"),
        launch=_e8p,
    ),
    "MatMulTernary": PluginNode(
        inputs=("A", *MATMUL_TERNARY.arrays),
        types="aus",
        attributes=("rows", "columns", "group", "planes", "activation_bits"),
        launch=_ternary,
    ),
    "MatMulTrellis": PluginNode(
        inputs=("A", *MATMUL_TRELLIS.arrays),
        types="auh",
        attributes=("rows", "columns", "code", "step_bits", "state_bits", "activation_bits"),
        launch=_trellis,
    ),
    HADAMARD: PluginNode(
        inputs=("X", "factor"), types="aa", attributes=("size",), launch=_hadamard
    ),
}
"""Every operator of onnxq."""
