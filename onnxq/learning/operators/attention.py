"""Attention of ONNX Runtime's own domain: GroupQueryAttention, MultiHeadAttention, Attention."""

from __future__ import annotations

import math

import torch

from onnxq.learning.operators.attention_inputs import attend, join_heads, rotate, split_heads
from onnxq.learning.operators.shapes import ints
from onnxq.learning.operators.table import Call, Result, Tensor, operator

__all__: list[str] = []


@operator("GroupQueryAttention", domain="com.microsoft")
def _group_query(
    call: Call,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    lengths: Tensor,
    total: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    *rest: Tensor | None,
) -> Result:
    if any(item is not None for item in rest):
        raise call.refusal("quantized caches are not computed")
    if call.wants(3):
        raise call.refusal("its scores as an output are not computed")
    heads, shared = call.attribute("num_heads"), call.attribute("kv_num_heads")
    q, k, v = _separate(query, key, value, heads, shared)
    steps, whole = q.shape[2], int(total.reshape(()).item())
    # The first call may be padded at the end; in later ones each row has its own past.
    ends = [length + 1 for length in ints(lengths)]
    starts = [0 if steps == whole else end - steps for end in ends]
    places = torch.tensor(starts, device=q.device).unsqueeze(1) + torch.arange(
        steps, device=q.device
    )
    if call.attribute("do_rotary", 0):
        at = places if positions is None else positions.to(torch.int64)
        inter = bool(call.attribute("rotary_interleaved", 0))
        q, k = (rotate(x, cos[at], sin[at], inter) for x in (q, k))  # type: ignore[index]
    k, v = _grown(past_key, k, starts, whole), _grown(past_value, v, starts, whole)
    score = _hidden_after(places, k.shape[2], call.attribute("local_window_size", -1), q.dtype)
    if bias is not None:
        wide = torch.zeros(*bias.shape[:3], k.shape[2], dtype=q.dtype, device=q.device)
        wide[..., : bias.shape[3]] = bias
        score = score + wide
    if sink is None and call.attribute("smooth_softmax", 0) == 1:
        sink = torch.zeros(heads, dtype=q.dtype, device=q.device)
    scale = call.attribute("scale", 0.0) or 1 / math.sqrt(q.shape[-1])
    result = attend(
        q, k, v, bias=score, scale=scale, softcap=call.attribute("softcap", 0.0), sink=sink
    )
    return join_heads(result), k, v


def _separate(
    query: Tensor, key: Tensor | None, value: Tensor | None, heads: int, shared: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Heads of queries, keys and values, which may come in one tensor."""
    if key is None or value is None:
        size = query.shape[-1] // (heads + 2 * shared)
        query, key, value = query.split([heads * size, shared * size, shared * size], -1)
    return split_heads(query, heads), split_heads(key, shared), split_heads(value, shared)


def _grown(past: Tensor | None, new: Tensor, starts: list[int], whole: int) -> Tensor:
    """The cache with new entries at each row's own place, [batch, heads, total, size]."""
    size = max(whole, 0 if past is None else past.shape[2])
    rows = []
    for row, start in enumerate(starts):
        before = new[row, :, :0] if past is None else past[row, :, :start]
        parts = [before, new[row]]
        filled = before.shape[1] + new.shape[2]
        if past is not None and past.shape[2] > filled:
            parts.append(past[row, :, filled:])
            filled = past.shape[2]
        if filled < size:
            parts.append(new.new_zeros(new.shape[1], size - filled, new.shape[3]))
        rows.append(torch.cat(parts, 1)[:, :size])
    return torch.stack(rows)


def _hidden_after(places: Tensor, size: int, window: int, dtype: torch.dtype) -> Tensor:
    """Scores [batch, 1, sequence, total]: 0 where a token may look, -inf where not."""
    keys = torch.arange(size, device=places.device)
    seen = keys <= places.unsqueeze(-1)
    if window > 0:
        seen = seen & (keys > places.unsqueeze(-1) - window)
    return torch.zeros(seen.shape, dtype=dtype, device=places.device).masked_fill_(
        ~seen, -torch.inf
    )[:, None]


@operator("MultiHeadAttention", domain="com.microsoft")
def _multi_head(
    call: Call,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    padding: Tensor | None = None,
    score: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *rest: Tensor | None,
) -> Result:
    if any(item is not None for item in rest) or call.wants(3):
        raise call.refusal("shared buffers, beams and scores as an output are not computed")
    if key is None or value is None:
        raise call.refusal("queries, keys and values in one tensor are not computed")
    heads = call.attribute("num_heads")
    q, k, v = _multi_head_inputs(query, key, value, bias, heads)
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    filter_value = call.attribute("mask_filter_value", -10000.0)
    if padding is not None:
        hidden = _padding_scores(padding, q, k.shape[2], filter_value)
        score = hidden if score is None else score + hidden
    if call.attribute("unidirectional", 0):
        score = _with_causal(score, q, k)
    scale = call.attribute("scale", 0.0) or 1 / math.sqrt(q.shape[-1])
    return join_heads(attend(q, k, v, bias=score, scale=scale)), k, v


def _multi_head_inputs(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    q = split_heads(query, heads)
    k, v = (x if x.ndim == 4 else split_heads(x, heads) for x in (key, value))
    if bias is None:
        return q, k, v
    sizes = [heads * q.shape[-1], heads * k.shape[-1], heads * v.shape[-1]]
    parts = [part.reshape(1, heads, 1, -1) for part in bias.split(sizes)]
    if key.ndim == 4:  # keys of cross attention come with theirs
        return q + parts[0], k, v
    return q + parts[0], k + parts[1], v + parts[2]


def _padding_scores(padding: Tensor, q: Tensor, total: int, low: float) -> Tensor:
    """Scores of a mask [batch, total], lengths [batch] or [batch, sequence, total]."""
    if padding.ndim == 1:
        keys = torch.arange(total, device=q.device)
        seen = keys < padding[: q.shape[0], None]
    else:
        seen = padding != 0
    seen = seen[:, None, None] if seen.ndim == 2 else seen[:, None]
    return torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill_(~seen, low)


def _with_causal(score: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    steps, total = q.shape[2], k.shape[2]
    places = torch.arange(total - steps, total, device=q.device).unsqueeze(0)
    hidden = _hidden_after(places, total, -1, q.dtype)
    return hidden if score is None else score + hidden


@operator("Attention", domain="com.microsoft")
def _packed_attention(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    score: Tensor | None = None,
    *rest: Tensor | None,
) -> Result:
    if any(item is not None for item in rest) or call.attribute("do_rotary", 0):
        raise call.refusal("shared buffers and its own rotary embedding are not computed")
    heads = call.attribute("num_heads")
    mixed = torch.matmul(x, weight)
    mixed = mixed if bias is None else mixed + bias
    sizes = list(call.attribute("qkv_hidden_sizes") or [mixed.shape[-1] // 3] * 3)
    q, k, v = (split_heads(part, heads) for part in mixed.split(sizes, -1))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    if mask is not None:
        if mask.ndim == 4 or (mask.ndim == 1 and mask.shape[0] != x.shape[0]):
            raise call.refusal(f"a mask of {mask.ndim} dimensions in this form is not computed")
        hidden = _padding_scores(mask, q, k.shape[2], call.attribute("mask_filter_value", -10000.0))
        score = hidden if score is None else score + hidden
    if call.attribute("unidirectional", 0):
        score = _with_causal(score, q, k)
    scale = call.attribute("scale", 0.0) or 1 / math.sqrt(q.shape[-1])
    present = torch.stack([k, v]) if call.wants(1) else None
    return join_heads(attend(q, k, v, bias=score, scale=scale)), present
