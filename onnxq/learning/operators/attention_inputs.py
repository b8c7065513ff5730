"""What attention operators share: heads, rotary embedding, caches, the product itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from onnxq.learning.operators.table import Call, Result, Tensor, operator

__all__ = ["attend", "join_heads", "rotate", "split_heads"]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, sequence, heads * size] to [batch, heads, sequence, size]."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[batch, heads, sequence, size] to [batch, sequence, heads * size]."""
    return x.transpose(1, 2).flatten(2)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None,
    scale: float,
    softcap: float = 0.0,
    sink: Tensor | None = None,
) -> Tensor:
    """Attention of each head; fewer key and value heads are shared among query heads.

    Args:
        query: [batch, heads, sequence, size].
        key: [batch, heads of keys, total, size].
        value: [batch, heads of keys, total, size of values].
        bias: added to the scores, broadcast to [batch, heads, sequence, total]; -inf hides.
        scale: factor of the scores.
        softcap: scores s become ``softcap * tanh(s / softcap)``; 0 leaves them.
        sink: logit [heads] of a further key whose value is zero.

    Returns:
        [batch, heads, sequence, size of values].
    """
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    if not softcap and sink is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    scores = torch.matmul(query, key.transpose(-1, -2)) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if sink is not None:
        further = sink.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.matmul(torch.cat([scores, further], -1).softmax(-1)[..., :-1], value)
    return torch.matmul(scores.softmax(-1), value)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding (Su et al. 2021): pairs of the last axis turned by an angle each.

    Args:
        x: [batch, heads, sequence, size].
        cos: [batch or 1, sequence, half]; the first ``2 * half`` elements are turned.
        sin: as ``cos``.
        interleaved: pairs are neighbours; otherwise an element of the first and one of the
            second half.
    """
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    cos, sin = cos.unsqueeze(1).to(x.dtype), sin.unsqueeze(1).to(x.dtype)
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., :half], turned[..., half:]
    real, imaginary = first * cos - second * sin, first * sin + second * cos
    if interleaved:
        both = torch.stack([real, imaginary], -1).flatten(-2)
    else:
        both = torch.cat([real, imaginary], -1)
    return torch.cat([both, rest], -1) if rest.shape[-1] else both


@operator("RotaryEmbedding")
def _rotary(
    call: Call, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None
) -> Result:
    heads = call.attribute("num_heads", 0)
    flat = x.ndim == 3
    part = call.attribute("rotary_embedding_dim", 0)
    y = split_heads(x, heads) if flat else x
    if positions is not None:
        cos, sin = cos[positions.to(torch.int64)], sin[positions.to(torch.int64)]
    if part:
        cos, sin = cos[..., : part // 2], sin[..., : part // 2]
    y = rotate(y, cos, sin, bool(call.attribute("interleaved", 0)))
    return join_heads(y) if flat else y


@operator("RotaryEmbedding", domain="com.microsoft")
def _microsoft_rotary(call: Call, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Result:
    flat = x.ndim == 3
    part = call.attribute("rotary_embedding_dim", 0)
    if flat:
        heads = call.attribute("num_heads", 0) or x.shape[-1] // (2 * cos.shape[-1])
        y = split_heads(x, heads)
    else:
        y = x
    at = positions.to(torch.int64)
    if at.numel() == 1:  # the position of the first token
        at = at.reshape(1, 1) + torch.arange(y.shape[2], device=at.device)
    cos, sin = cos[at], sin[at]
    if part:
        cos, sin = cos[..., : part // 2], sin[..., : part // 2]
    y = rotate(y, cos, sin, bool(call.attribute("interleaved", 0)))
    return join_heads(y) if flat else y
