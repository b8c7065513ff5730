"""What ``onnxq.Hadamard`` means, in standard operators, and how it is put into a model.

``Y = Hadamard<size = n>(X, factor)`` rotates each run of n entries along the last axis of X::

    y = x · (F ⊗ S) / √(2ᵏ),   F = factor [m, m] orthonormal,   S Sylvester of order 2ᵏ,   n = m 2ᵏ

The body splits S = S_left ⊗ S_right, so that x, seen as a matrix of m·left × right, takes two small
products instead of one of n × n: (F ⊗ S_left)ᵀ · x · S_right / √(2ᵏ). Both matrices are made from
``size`` and ``factor`` alone: S(i, j) = 1 − 2 (number of bits in i & j, mod 2), and that number is
B Bᵀ for the matrix B of the bits of 0, 1, 2, ... A runtime folds them once the weights are known.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.custom_ops.functions import DOMAIN, add_function
from onnxq.errors import UnsupportedGraph
from onnxq.graph.names import unique_value_name
from onnxq.graph.weights import add_weight
from onnxq.numerics.hadamard import core_matrix, factor_size

__all__ = ["HADAMARD", "hadamard_node", "is_hadamard"]

HADAMARD = "Hadamard"
_OPSET = 15  # CastLike; Shape with start and end
_DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)

_BODY = """
Hadamard <size> (X, factor) => (Y) {
    width = Constant<value_int: int = @size>()
    zero = Constant<value = float {0}>()
    one = Constant<value = float {1}>()
    two = Constant<value = float {2}>()
    log_two = Constant<value = float {0.6931471805599453}>()
    first = Constant<value = int64[1] {0}>()
    second = Constant<value = int64[1] {1}>()
    both = Constant<value = int64[2] {0, 1}>()
    corner = Constant<value = int64[2] {0, 0}>()
    any = Constant<value = int64[1] {-1}>()
    places = Constant<value = float[16] {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096,
                                         8192, 16384, 32768}>()

    order = Shape<start = 0, end = 1>(factor)
    width_at = Unsqueeze(width, first)
    power = Div(width_at, order)
    power_float = Cast<to = 1>(power)
    order_float = Cast<to = 1>(order)
    power_log = Log(power_float)
    order_log = Log(order_float)
    difference = Sub(power_log, order_log)
    difference_bits = Div(difference, log_two)
    half = Div(difference_bits, two)
    half_down = Floor(half)
    left_bits = Max(half_down, zero)
    left_float = Pow(two, left_bits)
    left = Cast<to = 7>(left_float)
    right = Div(power, left)
    right_float = Cast<to = 1>(right)
    longest = Max(left_float, right_float)
    count = Squeeze(longest, first)
    indices = Range(zero, count, one)
    column = Unsqueeze(indices, second)
    shifted = Div(column, places)
    whole = Floor(shifted)
    bits = Mod<fmod = 1>(whole, two)
    bits_turned = Transpose<perm = [1, 0]>(bits)
    common = MatMul(bits, bits_turned)
    odd = Mod<fmod = 1>(common, two)
    twice = Mul(odd, two)
    sylvester = Sub(one, twice)

    right_shape = Concat<axis = 0>(right, right)
    right_sylvester = Slice(sylvester, corner, right_shape, both)
    root = Sqrt(power_float)
    right_unit = Div(right_sylvester, root)
    right_matrix = CastLike(right_unit, X)
    left_shape = Concat<axis = 0>(left, left)
    left_sylvester = Slice(sylvester, corner, left_shape, both)
    left_like = CastLike(left_sylvester, X)
    factor_axes = Concat<axis = 0>(order, second, order, second)
    factor_grid = Reshape(factor, factor_axes)
    left_axes = Concat<axis = 0>(second, left, second, left)
    left_grid = Reshape(left_like, left_axes)
    product = Mul(factor_grid, left_grid)
    height = Mul(order, left)
    left_square = Concat<axis = 0>(height, height)
    left_matrix = Reshape(product, left_square)
    left_turned = Transpose<perm = [1, 0]>(left_matrix)

    grid = Concat<axis = 0>(any, height, right)
    rows = Reshape(X, grid)
    rotated_right = MatMul(rows, right_matrix)
    rotated = MatMul(left_turned, rotated_right)
    shape = Shape(X)
    Y = Reshape(rotated, shape)
}
"""


def hadamard_node(model: ir.Model, value: ir.Value, size: int, *, name: str) -> ir.Node:
    """A node that rotates ``value`` in runs of ``size``, in no graph yet.

    The model gets the function once, and the small factor once for each order and type.

    Args:
        model: whose main graph the node is for.
        value: a float32 or float16 tensor whose last axis is a multiple of ``size``.
        size: n, any size from 1 on; `onnxq.numerics.hadamard.factor_size` chooses m.
        name: of the node; its output is ``name`` with ``_output``.

    Raises:
        UnsupportedGraph: the value has another type, or the model is in an opset below 15.
    """
    dtype = value.dtype
    if dtype not in _DTYPES:
        raise UnsupportedGraph(
            f"onnxq.Hadamard takes float32 or float16, and {value.name!r} is "
            f"{dtype.name if dtype is not None else 'of unknown type'}."
        )
    add_function(model, HADAMARD, _BODY, lowest_opset=_OPSET)
    factor = _factor(model, size, dtype)
    node = ir.node(HADAMARD, [value, factor], {"size": size}, domain=DOMAIN, name=name)
    output = node.outputs[0]
    output.name = unique_value_name(model.graph, f"{name}_output")
    output.type = value.type
    output.shape = None if value.shape is None else value.shape.copy()
    return node


def is_hadamard(node: ir.Node | None) -> bool:
    """Whether the node is one of these."""
    return node is not None and node.domain == DOMAIN and node.op_type == HADAMARD


def _factor(model: ir.Model, size: int, dtype: ir.DataType) -> ir.Value:
    factors = factor_size(size)
    kind = "hadamard" if factors.is_hadamard else "hartley"
    name = f"onnxq_{kind}_{factors.core}_{dtype.name.lower()}"
    present = model.graph.initializers.get(name)
    if present is not None:
        return present
    matrix = (core_matrix(factors) / np.sqrt(factors.core)).astype(dtype.numpy())
    return add_weight(model.graph, name, shape=matrix.shape, dtype=dtype, compute=matrix)
