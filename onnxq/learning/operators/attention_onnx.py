"""Attention of ONNX itself, opset 23 and later."""

from __future__ import annotations

import math

import torch

from onnxq.learning.operators.attention_inputs import attend, join_heads, split_heads
from onnxq.learning.operators.table import Call, Result, Tensor, operator

__all__: list[str] = []


@operator("Attention")
def _attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    filled: Tensor | None = None,
) -> Result:
    flat = query.ndim == 3
    if flat:
        heads, shared = call.attribute("q_num_heads"), call.attribute("kv_num_heads")
        query, key, value = (
            split_heads(query, heads),
            split_heads(key, shared),
            split_heads(value, shared),
        )
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    before = 0 if past_key is None else past_key.shape[2]
    bias = _bias(call, query, key.shape[2], mask, before, filled)
    scale = call.attribute("scale") or 1 / math.sqrt(query.shape[-1])
    softcap = call.attribute("softcap", 0.0)
    shown = None
    if bias is not None:
        # A token that sees nothing gives zeros; its scores are opened, so that no NaN arises.
        blind = torch.isneginf(bias).all(-1, keepdim=True)
        shown, bias = ~blind, bias.masked_fill(blind, 0.0)
    scores = _scores(call, query, key, bias, shown, scale) if call.wants(3) else None
    result = attend(query, key, value, bias=bias, scale=scale, softcap=softcap)
    result = result if shown is None else result * shown
    return join_heads(result) if flat else result, key, value, scores


def _bias(
    call: Call,
    query: Tensor,
    total: int,
    mask: Tensor | None,
    before: int,
    filled: Tensor | None,
) -> Tensor | None:
    """What is added to the scores: the mask, causality and the ends of the caches."""
    steps, found = query.shape[2], None
    if mask is not None:
        if mask.dtype == torch.bool:
            shown = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
            found = shown.masked_fill(~mask, -torch.inf)
        else:
            found = mask.to(query.dtype)
        if found.shape[-1] < total:  # keys beyond the mask are hidden
            found = torch.nn.functional.pad(found, (0, total - found.shape[-1]), value=-torch.inf)
    keys = torch.arange(total, device=query.device)
    places = torch.arange(steps, device=query.device).unsqueeze(-1) + before
    if filled is not None:
        places = places + (filled.reshape(-1, 1, 1, 1) - steps)
        found = _hide(found, keys >= filled.reshape(-1, 1, 1, 1), query)
    if call.attribute("is_causal", 0):
        found = _hide(found, keys > places, query)
    left, right = call.attribute("left_window_size", -1), call.attribute("right_window_size", -1)
    if left >= 0:
        found = _hide(found, keys < places - left, query)
    if right >= 0:
        found = _hide(found, keys > places + right, query)
    return found


def _hide(bias: Tensor | None, hidden: Tensor, like: Tensor) -> Tensor:
    scores = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    scores = scores.masked_fill(hidden, -torch.inf)
    return scores if bias is None else bias + scores


def _scores(
    call: Call, query: Tensor, key: Tensor, bias: Tensor | None, shown: Tensor | None, scale: float
) -> Tensor:
    """The scores by ``qk_matmul_output_mode``: 0 raw, 1 capped, 2 with the bias, 3 softmax."""
    mode, softcap = call.attribute("qk_matmul_output_mode", 0), call.attribute("softcap", 0.0)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = torch.matmul(query, key.transpose(-1, -2)) * scale
    if mode == 0:
        return scores
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if mode == 1:
        return scores
    scores = scores if bias is None else scores + bias
    if mode == 3:
        scores = scores.softmax(-1)
        return scores if shown is None else scores * shown
    return scores if shown is None else scores.masked_fill(~shown, -torch.inf)
