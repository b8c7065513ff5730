"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from onnxq.learning.operators.shapes import axes_of
from onnxq.learning.operators.table import Call, Result, Tensor, operator

__all__: list[str] = []


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _extreme(find: Callable[..., Tensor]) -> Callable[[Tensor, tuple[int, ...], bool], Tensor]:
    def reduce(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        greatest = find is torch.amax
        if x.dtype == torch.bool:
            return torch.any(x, axes, keep) if greatest else torch.all(x, axes, keep)
        if x.is_floating_point() and not x.numel():
            of_nothing = -torch.inf if greatest else torch.inf
            return torch.full_like(torch.sum(x, axes, keep), of_nothing)
        return find(x, axes, keep)

    return reduce


_REDUCTIONS: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "ReduceSum": lambda x, axes, keep: torch.sum(x, axes, keep),
    "ReduceMean": lambda x, axes, keep: torch.mean(x, axes, keep),
    "ReduceMax": _extreme(torch.amax),
    "ReduceMin": _extreme(torch.amin),
    "ReduceProd": _prod,
    "ReduceL1": lambda x, axes, keep: torch.sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: torch.sum(x * x, axes, keep),
    "ReduceLogSum": lambda x, axes, keep: torch.log(torch.sum(x, axes, keep)),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
}


@operator(*_REDUCTIONS)
def _reduce(call: Call, x: Tensor, axes: Tensor | None = None) -> Result:
    kind = call.node.op_type
    chosen = axes_of(call, 13 if kind == "ReduceSum" else 18, axes)
    if not chosen:
        if call.attribute("noop_with_empty_axes", 0):
            # The step before the sum is still taken, the sum over nothing is not.
            chosen = []
            return _REDUCTIONS[kind](x.unsqueeze(-1), (-1,), False)
        chosen = list(range(x.ndim))
    if not chosen:
        return _REDUCTIONS[kind](x.unsqueeze(-1), (-1,), False)
    keep = bool(call.attribute("keepdims", 1))
    return _REDUCTIONS[kind](x, tuple(chosen), keep).to(x.dtype)
