"""A linear map of activations by two small matrices, written as a function of domain ``onnxq``.

``KroneckerMatMul(X, L, R)`` is X · (L ⊗ R) along the last axis, for L [a, a], R [b, b] and X with
a · b channels: the channels are laid out as an a × b matrix, which becomes Lᵀ · that · R. It costs
a + b multiplications for each number where the full matrix would cost a · b. The body is two
MatMuls between Reshapes, in standard operators; a runtime that does not know it inlines it. Being
a function, it holds no site: passes that quantize weights leave L and R as they are.

Kronecker-factored maps before a linear layer: FlatQuant (Sun et al., arXiv:2410.09426, section
3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph.names import unique_value_name
from onnxq.graph.sites import Site
from onnxq.graph.weights import add_weight, read_weight, replace_weight, weight_tensor
from onnxq.passes.fake_quantization import DOMAIN

__all__ = ["FUNCTION_OPSET", "KRONECKER", "insert_kronecker", "unapply_kronecker"]

KRONECKER = "KroneckerMatMul"
FUNCTION_OPSET = 15
"""From here on Shape gives single dimensions, as the body asks for them."""

Matrix = npt.NDArray[np.float64]

_TEXT = """
<ir_version: 10, opset_import: ["" : {opset}, "onnxq" : 1]>
holder (float[n] a) => (float[n] b) {{ b = Identity(a) }}
<domain: "onnxq", opset_import: ["" : {opset}]>
KroneckerMatMul (X, L, R) => (Y) {{
    shape = Shape(X)
    rows = Constant<value_ints = [-1]>()
    first = Shape<start = 0, end = 1>(L)
    second = Shape<start = 0, end = 1>(R)
    inner = Concat<axis = 0>(rows, first, second)
    blocks = Reshape(X, inner)
    right = MatMul(blocks, R)
    turned = Transpose<perm = [1, 0]>(L)
    both = MatMul(turned, right)
    Y = Reshape(both, shape)
}}
"""


def insert_kronecker(
    model: ir.Model, value: ir.Value, sites: Sequence[Site], left: Matrix, right: Matrix
) -> ir.Value:
    """Let the sites read value · (L ⊗ R) in the place of the value.

    Args:
        model: gets the function and its domain, unless they are there.
        value: an activation of the main graph with a · b channels on its last axis.
        sites: readers of the value; others go on reading it as it is.
        left: L, ``[a, a]``, in values of the type of the weights.
        right: R, ``[b, b]``.

    Returns:
        The mapped value.
    """
    key = (DOMAIN, KRONECKER, "")
    if key not in model.functions:
        opset = model.opset_imports.get("", FUNCTION_OPSET)
        function = ir.from_onnx_text(_TEXT.format(opset=opset)).functions[key]
        for node in function:
            node.name = f"{KRONECKER}_{node.outputs[0].name}"
        model.functions[key] = function
        model.opset_imports.setdefault(DOMAIN, 1)
    weight = sites[0].weight
    dtype = ir.DataType.FLOAT if weight is None else weight_tensor(weight).dtype
    factors = []
    for label, matrix in (("left", left), ("right", right)):
        stored = matrix.astype(dtype.numpy())
        name = f"{value.name}_flatten_{label}"
        factors.append(
            add_weight(model.graph, name, shape=stored.shape, dtype=dtype, compute=stored)
        )
    node = ir.node(KRONECKER, [value, *factors], domain=DOMAIN, name=f"{value.name}_flatten")
    mapped = node.outputs[0]
    mapped.name = unique_value_name(model.graph, f"{value.name}_flattened")
    mapped.shape, mapped.type = value.shape, value.type
    readers = {site.node for site in sites}
    model.graph.insert_before(next(n for n in model.graph if n in readers), node)
    for reader in readers:
        for index, given in enumerate(reader.inputs):
            if given is value:
                reader.replace_input_with(index, mapped)
    return mapped


def unapply_kronecker(site: Site, left: Matrix, right: Matrix) -> None:
    """Replace the rows w of a site's matrix by w (L ⊗ R)⁻ᵀ, computed when the model is saved."""
    weight = site.weight
    if weight is None:
        raise ValueError(f"site {site.name!r} has no weight")
    tensor = weight_tensor(weight)
    stored = ir.Value(name=weight.name, const_value=tensor)
    back = np.linalg.inv(left).T, np.linalg.inv(right).T
    is_transposed = site.in_axis == 0

    def compute() -> npt.NDArray[np.generic]:
        array = read_weight(stored).astype(np.float64)
        rows = array.T if is_transposed else array
        blocks = rows.reshape(len(rows), len(left), len(right))
        moved = np.matmul(back[0].T, np.matmul(blocks, back[1])).reshape(rows.shape)
        moved = moved.T if is_transposed else moved
        return np.ascontiguousarray(moved.astype(tensor.dtype.numpy()))

    shape = [int(size) for size in tensor.shape.numpy()]
    replace_weight(weight, shape=shape, dtype=tensor.dtype, compute=compute)
