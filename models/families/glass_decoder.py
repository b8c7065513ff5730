"""GlassLM: a small Llama-like decoder (RMSNorm, rotary positions, grouped-query attention, SwiGLU).

The graph has one input of token ids and no cache: with at most 128 positions it is the small
causal language model for tests and quick experiments.
"""

# mypy: disallow-subclassing-any=False
# torch is not followed by the type checker, so that its modules are of type Any there.

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

__all__ = ["GlassConfig", "GlassDecoder", "load_arrays"]


@dataclasses.dataclass(frozen=True)
class GlassConfig:
    """Sizes of a decoder; the names are the checkpoint's."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    max_len: int
    rope_base: float
    eps: float
    init_std: float = 0.02


class RmsNorm(nn.Module):
    """x / √(mean(x²) + ε) · γ over the last axis (Zhang and Sennrich, NeurIPS 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        """Start with γ = 1."""
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize; the shape stays."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.gamma


class Attention(nn.Module):
    """Causal attention whose key/value heads are shared by groups of query heads."""

    def __init__(self, config: GlassConfig) -> None:
        """Make projections without biases."""
        super().__init__()
        self.heads, self.kv_heads = config.n_heads, config.n_kv_heads
        self.size = config.d_model // config.n_heads
        self.W_Q = nn.Linear(config.d_model, self.heads * self.size, bias=False)
        self.W_K = nn.Linear(config.d_model, self.kv_heads * self.size, bias=False)
        self.W_V = nn.Linear(config.d_model, self.kv_heads * self.size, bias=False)
        self.W_O = nn.Linear(self.heads * self.size, config.d_model, bias=False)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """[batch, length, width] with tables [length, size / 2] and a mask [length, length]."""
        q = _rotate(self._split(self.W_Q(x), self.heads), cos, sin)
        k = _rotate(self._split(self.W_K(x), self.kv_heads), cos, sin)
        v = self._split(self.W_V(x), self.kv_heads)
        groups = self.heads // self.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        weights = (q @ k.transpose(2, 3) / self.size**0.5 + mask).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        out: torch.Tensor = self.W_O(mixed)
        return out

    def _split(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.unflatten(2, (heads, self.size)).transpose(1, 2)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate adjacent pairs of coordinates by their position's angles (Su et al., 2021)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


class SwiGlu(nn.Module):
    """W2(silu(W1 x) · W3 x) (Shazeer, 2020)."""

    def __init__(self, width: int) -> None:
        """Make the inner layer 8/3 as wide."""
        super().__init__()
        inner = int(8 * width / 3)
        self.W1 = nn.Linear(width, inner, bias=False)
        self.W3 = nn.Linear(width, inner, bias=False)
        self.W2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] → [..., width]."""
        out: torch.Tensor = self.W2(nn.functional.silu(self.W1(x)) * self.W3(x))
        return out


class Block(nn.Module):
    """Attention and SwiGLU, each behind a norm and beside a residual."""

    def __init__(self, config: GlassConfig) -> None:
        """Make one layer."""
        super().__init__()
        self.norm1 = RmsNorm(config.d_model, config.eps)
        self.attn = Attention(config)
        self.norm2 = RmsNorm(config.d_model, config.eps)
        self.ffn = SwiGlu(config.d_model)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Shapes as `Attention`."""
        x = x + self.attn(self.norm1(x), cos, sin, mask)
        out: torch.Tensor = x + self.ffn(self.norm2(x))
        return out


class GlassDecoder(nn.Module):
    """int64 ids [batch, length ≤ max_len] → float32 logits [batch, length, vocabulary]."""

    cos: torch.Tensor
    sin: torch.Tensor
    mask: torch.Tensor

    def __init__(self, config: GlassConfig) -> None:
        """Make a decoder with random weights; scores share the embedding."""
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm_f = RmsNorm(config.d_model, config.eps)
        size = config.d_model // config.n_heads
        rates = config.rope_base ** (-torch.arange(size // 2, dtype=torch.float64) * 2 / size)
        angles = torch.outer(torch.arange(config.max_len, dtype=torch.float64), rates)
        future = torch.full((config.max_len, config.max_len), float("-inf")).triu(1)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        self.register_buffer("mask", future, persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Score the next token at every position."""
        length = input_ids.shape[1]
        cos, sin, mask = self.cos[:length], self.sin[:length], self.mask[:length, :length]
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        logits: torch.Tensor = self.norm_f(x) @ self.embed.weight.T
        return logits


def load_arrays(module: GlassDecoder, arrays: Mapping[str, np.ndarray]) -> None:
    """Fill a decoder from the arrays of a ``glassllm`` checkpoint, whose matrices are [in, out].

    Raises:
        RuntimeError: the names or shapes are not this decoder's.
    """
    state = {}
    for name, array in arrays.items():
        values = torch.from_numpy(np.asarray(array, np.float32))
        if name == "E":
            state["embed.weight"] = values
        elif values.ndim == 2:
            state[f"{name}.weight"] = values.T.contiguous()
        else:
            state[name] = values
    module.load_state_dict(state)
