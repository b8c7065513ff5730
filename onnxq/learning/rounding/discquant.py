"""DiscQuant: the gradient of the distillation loss decides between the two nearest grid points.

With y in [0, 1] the place of a weight between its two codes, x in [0, 1] is found by projected
gradient steps on

    loss(x) + λ Σ (1 − 2 y) x

The linear term stands for ‖x − y‖², the same for whole x, and drives all but as many elements as
there are constraints from the data to 0 or 1; the rest is rounded. (Chee et al., arXiv:2501.06417,
section 4. There the loss is the divergence of the final outputs; here it is that of the block.)
"""

from __future__ import annotations

import torch

from onnxq.formats import Arrays, IntFormat
from onnxq.learning.rounding.weight import RoundedWeight

__all__ = ["DiscRounded"]


class DiscRounded(RoundedWeight):
    """One weight; see the module."""

    def __init__(self, rows: torch.Tensor, fmt: IntFormat, start: Arrays) -> None:
        """Begin with x = y."""
        super().__init__(rows, fmt, start)
        self._floor, part = self.below()
        self._draw = 1.0 - 2.0 * part
        self._x = part.clone().requires_grad_()

    @property
    def parameters(self) -> list[torch.Tensor]:
        """X."""
        return [self._x]

    def soft(self, progress: float) -> torch.Tensor:
        """The weight between its two codes, x projected into [0, 1] first."""
        with torch.no_grad():
            self._x.clamp_(0.0, 1.0)
        return (self._floor + self._x - self.zero) * self.scale

    def hard(self) -> Arrays:
        """Up where x is more than a half; ties by the code to nearest."""
        x = self._x.detach()
        nearest = torch.from_numpy(self.start["codes"].astype("float32"))
        chosen = self._floor + (x > 0.5).to(x.dtype)
        return self.with_codes(torch.where((x - 0.5).abs() < 1e-6, nearest, chosen))

    def penalty(self, progress: float) -> torch.Tensor | None:
        """Mean of (1 − 2 y) x."""
        return (self._draw * self._x).mean()
