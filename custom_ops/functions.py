"""Meanings of operators as model-local functions in standard operators, kept as ONNX text.

A model that uses an operator of domain ``onnxq`` carries its function, so that any ONNX runtime
runs it; a runtime with the library of operators loaded takes its kernel instead.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.errors import UnsupportedGraph
from onnxq.graph.walk import OPERATOR_DOMAIN

__all__ = ["DOMAIN", "add_function", "rounded_product"]

DOMAIN = OPERATOR_DOMAIN

_HEAD = """
<ir_version: 10, opset_import: ["" : {opset}, "onnxq" : 1]>
holder (float[n] a) => (float[n] b) {{ b = Identity(a) }}
<domain: "onnxq", opset_import: ["" : {opset}]>
"""


def add_function(model: ir.Model, name: str, text: str, *, lowest_opset: int) -> None:
    """Give the model the function ``name`` of domain ``onnxq``, unless it has it.

    The body is written in the opset of the model, which inlining needs.

    Args:
        model: gets the function and the import of its domain.
        name: the operator.
        text: its definition in ONNX text syntax, from the name on.
        lowest_opset: the first opset whose operators the text is written in.

    Raises:
        UnsupportedGraph: the model is in an older opset.
    """
    key = (DOMAIN, name, "")
    opset = model.opset_imports.get("", 0)
    if opset < lowest_opset:
        raise UnsupportedGraph(
            f"{DOMAIN}.{name} is written in operators of opset {lowest_opset}, and the model is in "
            f"opset {opset}: run convert_opset first."
        )
    model.opset_imports.setdefault(DOMAIN, 1)
    if key in model.functions:
        return
    function = ir.from_onnx_text(_HEAD.format(opset=opset) + text).functions[key]
    for node in function:
        node.name = f"{DOMAIN}.{name}/{node.outputs[0].name}"  # unique in any model
    model.functions[key] = function


def rounded_product(last_axis: str) -> str:
    """The end of a body that rounds tokens to int8: from ``A`` and ``weight_turned`` to ``Y``.

    Args:
        last_axis: the constant that holds -1; ``most`` and ``least`` are constants of the body too.
    """
    return f"""    a = Cast<to = 1>(A)
    magnitude = Abs(a)
    found = ReduceMax<keepdims = 1>(magnitude, {last_axis})
    largest = Max(found, least)
    inverse = Div(most, largest)
    stretched = Mul(a, inverse)
    q = Round(stretched)
    product = MatMul(q, weight_turned)
    token_scale = Div(largest, most)
    y = Mul(product, token_scale)
    Y = CastLike(y, A)
"""
