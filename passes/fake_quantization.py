"""Rounding of activations written in standard operators: model-local functions of domain ``onnxq``.

``DynamicFakeQuantize`` finds a scale for every row of its input as the model runs, and
``DynamicFakeQuantizeAsymmetric`` a scale and a zero point. With b bits, L = 2^(b−1) − 1, a share c
of the range kept, and reductions over ``axes``::

    symmetric    s = max|x| · c / L                 x̂ = s · clip(round(x / s), −L, L)
    asymmetric   s = (h − l) · c / (2^b − 1)        x̂ = s · (clip(round(x / s) + z, 0, 2^b − 1) − z)
                 h = max(x, 0), l = min(x, 0)       z = round(−l · c / s)

Both compute in float32 whatever the type of x is, round half to even, and keep s at or above the
smallest normal number, so that a row of zeros gives zeros. A NaN or an infinity in x makes the row
NaN. A runtime that knows nothing of these operators inlines them.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.custom_ops.functions import DOMAIN, add_function
from onnxq.graph.sites import Site
from onnxq.graph.weights import is_weight

__all__ = ["ASYMMETRIC", "DOMAIN", "FUNCTION_OPSET", "SYMMETRIC", "fake_quantizer", "rounded_by"]

SYMMETRIC = "DynamicFakeQuantize"
ASYMMETRIC = "DynamicFakeQuantizeAsymmetric"
FUNCTION_OPSET = 18
"""From here on reductions take their axes as an input, as the function bodies write them."""

_SYMMETRIC = """
DynamicFakeQuantize <axes, bits, clip> (X) => (Y) {
    numbers = Cast<to = 1>(X)
    along = Constant<value_ints: ints = @axes>()
    width = Constant<value_int: int = @bits>()
    share = Constant<value_float: float = @clip>()
    one = Constant<value = float {1}>()
    two = Constant<value = float {2}>()
    tiny = Constant<value = float {1.17549435e-38}>()
    digits = Cast<to = 1>(width)
    fewer = Sub(digits, one)
    power = Pow(two, fewer)
    limit = Sub(power, one)
    lowest = Neg(limit)
    magnitudes = Abs(numbers)
    peak = ReduceMax<keepdims = 1>(magnitudes, along)
    kept = Mul(peak, share)
    wished = Div(kept, limit)
    scale = Max(wished, tiny)
    exact = Div(numbers, scale)
    nearest = Round(exact)
    codes = Clip(nearest, lowest, limit)
    rounded = Mul(codes, scale)
    Y = CastLike(rounded, X)
}
"""

_ASYMMETRIC = """
DynamicFakeQuantizeAsymmetric <axes, bits, clip> (X) => (Y) {
    numbers = Cast<to = 1>(X)
    along = Constant<value_ints: ints = @axes>()
    width = Constant<value_int: int = @bits>()
    share = Constant<value_float: float = @clip>()
    one = Constant<value = float {1}>()
    two = Constant<value = float {2}>()
    zero = Constant<value = float {0}>()
    tiny = Constant<value = float {1.17549435e-38}>()
    digits = Cast<to = 1>(width)
    power = Pow(two, digits)
    limit = Sub(power, one)
    highest = ReduceMax<keepdims = 1>(numbers, along)
    lowest = ReduceMin<keepdims = 1>(numbers, along)
    above = Max(highest, zero)
    below = Min(lowest, zero)
    upper = Mul(above, share)
    lower = Mul(below, share)
    part = Div(upper, limit)
    rest = Div(lower, limit)
    wished = Sub(part, rest)
    scale = Max(wished, tiny)
    offset = Div(lower, scale)
    whole = Round(offset)
    origin = Neg(whole)
    exact = Div(numbers, scale)
    nearest = Round(exact)
    shifted = Add(nearest, origin)
    codes = Clip(shifted, zero, limit)
    centred = Sub(codes, origin)
    rounded = Mul(centred, scale)
    Y = CastLike(rounded, X)
}
"""

_BODIES = {SYMMETRIC: _SYMMETRIC, ASYMMETRIC: _ASYMMETRIC}


def fake_quantizer(
    model: ir.Model,
    value: ir.Value,
    *,
    axes: tuple[int, ...],
    bits: int,
    symmetric: bool = True,
    clip: float = 1.0,
) -> ir.Node:
    """A call of the function on ``value``, in no graph yet; the function is added to the model.

    Args:
        model: gets the function and its domain, unless they are there.
        value: the activation, of any float type.
        axes: what one scale is shared by: ``(-1,)`` for one scale per row.
        bits: width of a code, 2 to 8.
        symmetric: without a zero point.
        clip: share of the range that is kept, in (0, 1].
    """
    name = SYMMETRIC if symmetric else ASYMMETRIC
    add_function(model, name, _BODIES[name], lowest_opset=FUNCTION_OPSET)
    node = ir.node(
        name, [value], {"axes": list(axes), "bits": bits, "clip": float(clip)}, domain=DOMAIN
    )
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    return node


def rounded_by(site: Site) -> ir.Node | None:
    """The node that rounds the activation of a site to few bits; None when it is in float."""
    node = None if site.input is None else site.input.producer()
    if node is None:
        return None
    if node.domain == DOMAIN and node.op_type in _BODIES:
        return node
    is_pair = node.op_type == "DequantizeLinear" and not is_weight(node.inputs[0])
    return node if is_pair else None
