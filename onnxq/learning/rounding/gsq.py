"""Gumbel-softmax over the grid points around each weight.

Every weight has logits over its nearest codes, at the start −d² / 2 of its distance d to each in
steps. While training, the codes are mixed with softmax((logits + g) / τ), g Gumbel noise, so that
the mixture is a draw of the categorical distribution as the temperature τ falls; what is stored is
the most likely code. The steps of the groups are learned beside. (GSQ: Dadgarnia et al.,
arXiv:2604.18556; Gumbel-softmax: Jang et al., arXiv:1611.01144, section 2.1. There every level of
the grid is a candidate; here the nearest few are.)
"""

from __future__ import annotations

import torch

from onnxq.formats import Arrays, IntFormat
from onnxq.learning.rounding.weight import SteppedWeight, spread

__all__ = ["GumbelRounded"]


class GumbelRounded(SteppedWeight):
    """One weight; see the module."""

    def __init__(
        self,
        rows: torch.Tensor,
        fmt: IntFormat,
        start: Arrays,
        *,
        candidates: int,
        first: float,
        last: float,
        noise: float,
        seed: int,
    ) -> None:
        """Begin with the code to nearest as the most likely.

        Args:
            rows: the float weight.
            fmt: its format.
            start: rounded to nearest.
            candidates: how many codes each weight chooses from, at least 2.
            first: temperature at the start.
            last: temperature at the end; between them it falls geometrically.
            noise: factor of the Gumbel noise; 0 trains the mean.
            seed: of the noise.
        """
        super().__init__(rows, fmt, start)
        count = min(candidates, fmt.highest - fmt.lowest + 1)
        floor, _ = self.below()
        low = torch.clamp(floor - (count - 2) // 2, fmt.lowest, fmt.highest - count + 1)
        self._codes = low.unsqueeze(-1) + torch.arange(count, dtype=torch.float32)
        exact = (rows / self.scale + self.zero).unsqueeze(-1)
        self._logits = (-0.5 * (self._codes - exact) ** 2).requires_grad_()
        self._first, self._last, self._noise = first, last, noise
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """The logits."""
        return [self._logits]

    @property
    def slow_parameters(self) -> list[torch.Tensor]:
        """Log steps."""
        return [self.log_step]

    def soft(self, progress: float) -> torch.Tensor:
        """The mixture of the codes."""
        temperature = self._first * (self._last / self._first) ** progress
        logits = self._logits
        if self._noise:
            uniform = torch.rand(logits.shape, generator=self._generator).clamp_(1e-9, 1 - 1e-7)
            logits = logits - self._noise * torch.log(-torch.log(uniform))
        shares = torch.softmax(logits / temperature, -1)
        step = spread(self.fmt, self.steps(), self.shape)
        return ((shares * self._codes).sum(-1) - self.zero) * step

    def hard(self) -> Arrays:
        """The most likely code; the one to nearest where two are."""
        logits = self._logits.detach()
        nearest = torch.from_numpy(self.start["codes"].astype("float32")).unsqueeze(-1)
        favoured = logits + 1e-6 * (self._codes == nearest)
        index = favoured.argmax(-1, keepdim=True)
        return self.with_steps(self._codes.gather(-1, index).squeeze(-1))
