"""Reading and writing at positions: gathers, scatters, extrema, one-hot."""

from __future__ import annotations

import torch

from onnxq.learning.operators.table import Call, Result, Tensor, operator

__all__: list[str] = []


@operator("Gather")
def _gather(call: Call, x: Tensor, indices: Tensor) -> Result:
    axis = call.attribute("axis", 0) % x.ndim
    at = _wrapped(indices, x.shape[axis])
    if at.ndim == 0:
        return x.select(axis, int(at.item()))
    picked = x.index_select(axis, at.reshape(-1))
    return picked.reshape(x.shape[:axis] + at.shape + x.shape[axis + 1 :])


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices counted from the end are counted from the start."""
    at = indices.to(torch.int64)
    return torch.where(at < 0, at + size, at)


@operator("GatherElements")
def _gather_elements(call: Call, x: Tensor, indices: Tensor) -> Result:
    axis = call.attribute("axis", 0) % x.ndim
    return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


@operator("GatherND")
def _gather_nd(call: Call, x: Tensor, indices: Tensor) -> Result:
    batch = call.attribute("batch_dims", 0)
    depth = indices.shape[-1]
    at = [_wrapped(indices[..., i], x.shape[batch + i]) for i in range(depth)]
    rank = indices.ndim - 1
    for dimension in range(batch):
        shape = [-1 if i == dimension else 1 for i in range(rank)]
        at.insert(dimension, torch.arange(x.shape[dimension], device=x.device).reshape(shape))
    return x[tuple(at)]


@operator("ScatterElements", "Scatter")
def _scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Result:
    axis = call.attribute("axis", 0) % x.ndim
    at = _wrapped(indices, x.shape[axis])
    how = call.attribute("reduction", "none")
    if how == "none":
        return x.scatter(axis, at, updates)
    named = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[how]
    return x.scatter_reduce(axis, at, updates, named)


@operator("ScatterND")
def _scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Result:
    depth = indices.shape[-1]
    outer, inner = x.shape[:depth], x.shape[depth:]
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for i in range(depth):
        flat = flat * outer[i] + _wrapped(indices[..., i], outer[i])
    rows = x.reshape(-1, *inner) if depth else x.reshape(1, *inner)
    flat, new = flat.reshape(-1), updates.reshape(-1, *inner)
    how = call.attribute("reduction", "none")
    if how == "none":
        return rows.index_copy(0, flat, new).reshape(x.shape)
    if how == "add":
        return rows.index_add(0, flat, new).reshape(x.shape)
    named = {"mul": "prod", "max": "amax", "min": "amin"}[how]
    return rows.index_reduce(0, flat, new, named).reshape(x.shape)


@operator("ArgMax", "ArgMin")
def _arg_extreme(call: Call, x: Tensor) -> Result:
    axis = call.attribute("axis", 0) % x.ndim
    find = torch.argmax if call.node.op_type == "ArgMax" else torch.argmin
    keep = bool(call.attribute("keepdims", 1))
    if call.attribute("select_last_index", 0):
        return x.shape[axis] - 1 - find(x.flip(axis), axis, keepdim=keep)
    return find(x, axis, keepdim=keep)


@operator("TopK")
def _top_k(call: Call, x: Tensor, k: Tensor | None = None) -> Result:
    count = call.attribute("k") if k is None else int(k.reshape(()).item())
    axis = call.attribute("axis", -1)
    largest = bool(call.attribute("largest", 1))
    # A stable sort gives the lower index first among equals, as ONNX asks.
    order = torch.sort(x.detach(), dim=axis, descending=largest, stable=True).indices
    order = order.narrow(axis, 0, count)
    return torch.gather(x, axis, order), order


@operator("OneHot")
def _one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Result:
    size = int(depth.reshape(()).item())
    axis = call.attribute("axis", -1)
    axis += indices.ndim + 1 if axis < 0 else 0
    at = _wrapped(indices, size).unsqueeze(axis)
    shape = [size if i == axis else 1 for i in range(indices.ndim + 1)]
    hit = at == torch.arange(size, device=at.device).reshape(shape)
    return torch.where(hit, values[1], values[0])


@operator("NonZero")
def _non_zero(call: Call, x: Tensor) -> Result:
    return torch.nonzero(x).t().contiguous()


@operator("Compress")
def _compress(call: Call, x: Tensor, condition: Tensor) -> Result:
    axis = call.attribute("axis")
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))
