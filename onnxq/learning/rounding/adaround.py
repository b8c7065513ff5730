"""AdaRound: up or down by a rectified sigmoid that an annealed penalty drives to 0 or 1.

    Ŵ = s (⌊W / s⌋ + h(V))      h(V) = clip(1.2 σ(V) − 0.1, 0, 1)

is trained with the penalty λ Σ (1 − |2 h − 1|^β), β falling so that at first what the loss does
not care about is free to move, and in the end everything is at 0 or 1. (Nagel et al.,
arXiv:2004.10568, equations 21 to 24.)
"""

from __future__ import annotations

import math

import torch

from onnxq.formats import Arrays, IntFormat
from onnxq.learning.rounding.weight import RoundedWeight

__all__ = ["AdaRounded"]

_LOW, _HIGH = -0.1, 1.1


class AdaRounded(RoundedWeight):
    """One weight; see the module."""

    def __init__(
        self,
        rows: torch.Tensor,
        fmt: IntFormat,
        start: Arrays,
        *,
        warmup: float,
        first: float,
        last: float,
    ) -> None:
        """Begin with h at the exact place of each weight between its two codes.

        Args:
            rows: the float weight.
            fmt: its format.
            start: rounded to nearest.
            warmup: share of the way without penalty.
            first: β after it.
            last: β at the end.
        """
        super().__init__(rows, fmt, start)
        self._floor, part = self.below()
        inner = ((part - _LOW) / (_HIGH - _LOW)).clamp(1e-4, 1.0 - 1e-4)
        self._v = torch.logit(inner).requires_grad_()
        self._warmup, self._first, self._last = warmup, first, last

    @property
    def parameters(self) -> list[torch.Tensor]:
        """V."""
        return [self._v]

    def soft(self, progress: float) -> torch.Tensor:
        """The weight between its two codes."""
        return (self._floor + self._up() - self.zero) * self.scale

    def hard(self) -> Arrays:
        """Up where h is more than a half; ties by the code to nearest."""
        up = self._up()
        chosen = self._floor + (up > 0.5).to(up.dtype)
        nearest = torch.from_numpy(self.start["codes"].astype("float32"))
        untouched = (up - 0.5).abs() < 1e-6
        return self.with_codes(torch.where(untouched, nearest, chosen))

    def penalty(self, progress: float) -> torch.Tensor | None:
        """Mean of 1 − |2 h − 1|^β."""
        if progress <= self._warmup:
            return None
        share = (progress - self._warmup) / (1.0 - self._warmup)
        beta = self._last + 0.5 * (self._first - self._last) * (1 + math.cos(share * math.pi))
        return (1.0 - (2.0 * self._up() - 1.0).abs().clamp(min=1e-12) ** beta).mean()

    def _up(self) -> torch.Tensor:
        return torch.clamp(torch.sigmoid(self._v) * (_HIGH - _LOW) + _LOW, 0.0, 1.0)
