"""Comparisons, logic, and the choice between two tensors."""

from __future__ import annotations

import torch

from onnxq.learning.operators.table import Call, Result, Tensor, of_two, operator

__all__: list[str] = []


for _name, _function in {
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}.items():
    operator(_name)(of_two(_function))


@operator("Not")
def _not(call: Call, x: Tensor) -> Result:
    return torch.logical_not(x)


@operator("Where")
def _where(call: Call, condition: Tensor, yes: Tensor, no: Tensor) -> Result:
    return torch.where(condition, yes, no)


@operator("IsNaN")
def _is_nan(call: Call, x: Tensor) -> Result:
    return torch.isnan(x)


@operator("IsInf")
def _is_inf(call: Call, x: Tensor) -> Result:
    positive = torch.isposinf(x) & bool(call.attribute("detect_positive", 1))
    return positive | (torch.isneginf(x) & bool(call.attribute("detect_negative", 1)))
