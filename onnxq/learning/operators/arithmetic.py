"""Arithmetic on elements."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from onnxq.learning.operators.table import Call, Result, Tensor, of_two, operator
from onnxq.learning.quantizers import round_through

__all__: list[str] = []


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Call, Tensor], Result]:
    def compute(call: Call, x: Tensor) -> Result:
        return function(x)

    return compute


for _name, _function in {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Sqrt": torch.sqrt,
    "Exp": torch.exp,
    "Log": torch.log,
    "Reciprocal": torch.reciprocal,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": round_through,
    "Sign": torch.sign,
    "Erf": torch.erf,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "Identity": lambda x: x,
    "BitwiseNot": torch.bitwise_not,
}.items():
    operator(_name)(_unary(_function))


for _name, _pair in {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}.items():
    operator(_name)(of_two(_pair))


@operator("Div")
def _div(call: Call, a: Tensor, b: Tensor) -> Result:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def _mod(call: Call, a: Tensor, b: Tensor) -> Result:
    return torch.fmod(a, b) if call.attribute("fmod", 0) else torch.remainder(a, b)


@operator("Pow")
def _pow(call: Call, a: Tensor, b: Tensor) -> Result:
    if b.numel() == 1 and b.item() == 2:  # the gradient of a general power is NaN at zero
        return (a * a).broadcast_to(torch.broadcast_shapes(a.shape, b.shape))
    if not a.is_floating_point() and b.is_floating_point():
        return torch.pow(a.to(b.dtype), b).to(a.dtype)
    return torch.pow(a, b).to(a.dtype)


@operator("BitShift")
def _bit_shift(call: Call, a: Tensor, b: Tensor) -> Result:
    left = call.attribute("direction") == "LEFT"
    return torch.bitwise_left_shift(a, b) if left else torch.bitwise_right_shift(a, b)


@operator("Sum")
def _sum(call: Call, *terms: Tensor) -> Result:
    return functools.reduce(torch.add, terms)


@operator("Mean")
def _mean(call: Call, *terms: Tensor) -> Result:
    return functools.reduce(torch.add, terms) / len(terms)


@operator("Max")
def _max(call: Call, *terms: Tensor) -> Result:
    return functools.reduce(torch.maximum, terms)


@operator("Min")
def _min(call: Call, *terms: Tensor) -> Result:
    return functools.reduce(torch.minimum, terms)


@operator("Clip")
def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Result:
    if call.opset < 11:
        return torch.clamp(x, call.attribute("min"), call.attribute("max"))
    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


@operator("CumSum")
def _cum_sum(call: Call, x: Tensor, axis: Tensor) -> Result:
    along = int(axis.item())
    if call.attribute("reverse", 0):
        x = x.flip(along)
    total = torch.cumsum(x, along).to(x.dtype)
    if call.attribute("exclusive", 0):
        total = total - x
    return total.flip(along) if call.attribute("reverse", 0) else total
