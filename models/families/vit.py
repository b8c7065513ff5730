"""A vision transformer (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929, section 3.1), small.

Patches of the image become tokens by one convolution, a class token and learned positions are
added, and pre-norm blocks of self-attention and a GELU feed-forward follow; the class token, or
the mean of all tokens, is classified.
"""

# mypy: disallow-subclassing-any=False
# torch is not followed by the type checker, so that its modules are of type Any there.

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["VisionTransformer", "VitConfig"]


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """Sizes of a network; image and patches are square.

    Attributes:
        image: side of the image in pixels, a multiple of ``patch``.
        patch: side of a patch in pixels.
        channels: colours of the image.
        width: of a token.
        depth: number of blocks.
        heads: attention heads; they divide ``width``.
        inner: width of the feed-forward layer.
        classes: number of classes.
        pool: what is classified: the ``class`` token, or the ``mean`` of all patches (and then
            there is no class token).
    """

    image: int
    patch: int
    channels: int
    width: int
    depth: int
    heads: int
    inner: int
    classes: int
    pool: Literal["class", "mean"] = "class"

    @property
    def tokens(self) -> int:
        """Tokens of one image, the class token counted."""
        return (self.image // self.patch) ** 2 + (self.pool == "class")


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases: [batch, tokens, width] to the same."""

    def __init__(self, config: VitConfig) -> None:
        """Make four projections with random weights."""
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix the tokens of each image."""
        q, k, v = (self._by_head(part(x)) for part in (self.query, self.key, self.value))
        mixed = scaled_dot_product_attention(q, k, v)
        result: torch.Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): [batch, tokens, width] to the same."""

    def __init__(self, config: VitConfig) -> None:
        """Make a block with random weights."""
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = SelfAttention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.inner)
        self.act = nn.GELU()
        self.down = nn.Linear(config.inner, config.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both halves."""
        x = x + self.attention(self.norm1(x))
        result: torch.Tensor = x + self.down(self.act(self.up(self.norm2(x))))
        return result


class VisionTransformer(nn.Module):
    """The whole classifier: float32 [batch, channels, image, image] → logits [batch, classes]."""

    def __init__(self, config: VitConfig) -> None:
        """Make a network with random weights, drawn from torch's default generator."""
        super().__init__()
        self.patches = nn.Conv2d(config.channels, config.width, config.patch, config.patch)
        self.token = (
            nn.Parameter(torch.zeros(1, 1, config.width)) if config.pool == "class" else None
        )
        self.positions = nn.Parameter(0.02 * torch.randn(1, config.tokens, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Classify images; see the class for shapes."""
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits: torch.Tensor = self.head(x[:, 0] if self.token is not None else x.mean(1))
        return logits
