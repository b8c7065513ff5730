"""Simulated quantizers: differentiable, and bit for bit what is later stored.

A quantizer maps a float tensor to the values its codes stand for. The forward pass does the same
IEEE float32 operations as `onnxq.numerics.rounding`, so what is learned against is what will be
written. In the backward pass the rounding counts as the identity (straight-through, Bengio et al.,
arXiv:1308.3432) and everything else as what it is. With x the value, s the step, c = clamp(x / s)
and r = round(c), the surrogate is s · (c + ρ) with ρ = r − c held fixed:

- inside the range dx̂/dx = 1 and dx̂/ds = r − x/s, the gradient of LSQ (Esser et al.,
  arXiv:1902.08153, eq. 3);
- outside dx̂/dx = 0 and dx̂/ds is the clamped code;
- s follows from the extremes of the group, so they, and a clip factor, get their gradient through
  it (learnable weight clipping: OmniQuant, Shao et al., arXiv:2308.13137, section 3.2).
"""

from __future__ import annotations

import dataclasses

import torch

from onnxq.errors import FormatError
from onnxq.formats import IntFormat, PerBlock, PerTensor

__all__ = ["TokenQuantizer", "WeightQuantizer", "round_through"]

_FLOAT_TINY = 2.0**-126
_HALF_TINY = 2.0**-24


def round_through(x: torch.Tensor) -> torch.Tensor:
    """Round ``x`` to the nearest whole numbers, ties to even, with the gradient of the identity.

    The sum is exact: round(x) − x is a multiple of the last place of x and at most a half.
    """
    return x + (torch.round(x) - x).detach()


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightQuantizer:
    """Round-to-nearest of a weight in an integer format.

    Attributes:
        fmt: any `IntFormat`; all granularities.
    """

    fmt: IntFormat

    def __call__(self, weight: torch.Tensor, clip: torch.Tensor | None = None) -> torch.Tensor:
        """The weight that ``fmt.decode(fmt.encode(weight))`` gives, bit for bit.

        Args:
            weight: ``[rows, columns]`` float32.
            clip: factors on the scale of each group, broadcast to the shape of the scales: the
                thresholds at which values are clipped, as a part of the group's range. One factor
                f for all groups is ``fmt.encode(weight, shrink=(f,))``.

        Returns:
            ``[rows, columns]`` float32.

        Raises:
            FormatError: not a float32 matrix.
        """
        if weight.ndim != 2 or weight.dtype != torch.float32:
            raise FormatError(
                f"a weight of shape {list(weight.shape)} and type {weight.dtype} is no float32 "
                "matrix: bring it to [rows, columns] float32 first."
            )
        grouped = self._grouped(weight)
        base, zero = self._plain_scale(grouped)
        if clip is not None:
            base = base * clip[..., None]
        scale = self._settle(base)
        low, high = self.fmt.lowest - zero, self.fmt.highest - zero
        steps = round_through(torch.clamp(grouped / scale, low, high))
        return self._flat(steps * scale, weight)

    def _grouped(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight with the members of a group on the last axis, filled up with zeros."""
        rows, columns = weight.shape
        if isinstance(self.fmt.granularity, PerTensor):
            return weight.reshape(1, 1, -1)
        size = self.fmt.group_size(columns)
        short = -columns % size
        if isinstance(self.fmt.granularity, PerBlock):
            tall = self.fmt.granularity.rows
            padded = torch.nn.functional.pad(weight, (0, short, 0, -rows % tall))
            tiles = padded.reshape(-1, tall, padded.shape[1] // size, size).transpose(1, 2)
            return tiles.reshape(*tiles.shape[:2], -1)
        padded = torch.nn.functional.pad(weight, (0, short)) if short else weight
        return padded.reshape(rows, -1, size)

    def _flat(self, grouped: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Undo `_grouped`."""
        rows, columns = like.shape
        if isinstance(self.fmt.granularity, PerTensor):
            return grouped.reshape(rows, columns)
        if isinstance(self.fmt.granularity, PerBlock):
            tall, size = self.fmt.granularity.rows, self.fmt.granularity.columns
            tiles = grouped.reshape(*grouped.shape[:2], tall, size).transpose(1, 2)
            flat = tiles.reshape(-1, grouped.shape[1] * size)
            return flat[:rows, :columns]
        return grouped.reshape(rows, -1)[:, :columns]

    def _plain_scale(self, grouped: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale (0 for an all-zero group) and zero point of each group, ``[..., 1]``."""
        bits = self.fmt.bits
        low = grouped.amin(dim=-1, keepdim=True).clamp(max=0.0)
        high = grouped.amax(dim=-1, keepdim=True).clamp(min=0.0)
        if not self.fmt.symmetric:
            levels = float(self.fmt.highest)
            base = high / levels - low / levels
            with torch.no_grad():
                zero = torch.clamp(torch.round(-low / self._settle(base)), 0.0, levels)
            return base, zero
        extreme = torch.where(high > -low, high, low)
        zero = torch.zeros_like(extreme)
        if bits == 8:
            return extreme.abs() / 127.0, zero
        if self.fmt.positive:
            return extreme.abs() / float(2 ** (bits - 1)), zero
        return extreme / -float(2 ** (bits - 1)), zero

    def _settle(self, base: torch.Tensor) -> torch.Tensor:
        """The scale as it is stored: in its precision, never 0 or subnormal."""
        scale, tiny = base, _FLOAT_TINY
        if self.fmt.scale_dtype == "float16":
            scale, tiny = base + (base.half().float() - base).detach(), _HALF_TINY
        scale = torch.where(scale.abs() < tiny, torch.full_like(scale, tiny), scale)
        return torch.where(base == 0, torch.ones_like(scale), scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenQuantizer:
    """A scale for every row of an activation, found as the model runs.

    The operators of `onnxq.passes.fake_quantization`, bit for bit.

    Attributes:
        bits: width of a code, 2 to 8.
        symmetric: without a zero point; codes are then in [-(2**(bits-1) - 1), 2**(bits-1) - 1].
    """

    bits: int
    symmetric: bool = True

    def __call__(self, x: torch.Tensor, clip: torch.Tensor | float = 1.0) -> torch.Tensor:
        """Round along the last axis.

        Args:
            x: float32 ``[..., channels]``.
            clip: share of the range of a row that is kept, in (0, 1].
        """
        share = torch.as_tensor(clip, dtype=torch.float32)
        limit = float(2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1)
        if self.symmetric:
            peak = x.abs().amax(dim=-1, keepdim=True)
            scale = torch.clamp(peak * share / limit, min=_FLOAT_TINY)
            return round_through(torch.clamp(x / scale, -limit, limit)) * scale
        above = x.amax(dim=-1, keepdim=True).clamp(min=0.0) * share
        below = x.amin(dim=-1, keepdim=True).clamp(max=0.0) * share
        scale = torch.clamp(above / limit - below / limit, min=_FLOAT_TINY)
        origin = -torch.round(below / scale).detach()
        codes = torch.clamp(round_through(x / scale) + origin, 0.0, limit)
        return (codes - origin) * scale
