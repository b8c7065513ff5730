"""FlexRound and LRQ: the weight is divided by a learned factor before it is rounded to nearest.

    Ŵ = s ⌊W / (s ∘ F)⌉

with the step s of every group learned too, and

    FlexRound   F = exp(S + r)                 a factor for each weight and row
    LRQ         F = exp(L U + r + c)           of low rank, with a term for each row and column

so a weight may go to any code, the farther the larger it is, and LRQ has as many parameters as a
low-rank pair. Everything starts at F = 1, which is rounding to nearest. (Lee et al.,
arXiv:2306.00317, equation 2; Lee et al., arXiv:2407.11534, equation 2.)
"""

from __future__ import annotations

import torch

from onnxq.formats import Arrays, IntFormat
from onnxq.learning.quantizers import round_through
from onnxq.learning.rounding.weight import SteppedWeight, spread

__all__ = ["FlexRounded", "LowRankRounded"]


class _Divided(SteppedWeight):
    """A weight divided by exp(`_exponent`) before rounding, its steps learned."""

    def soft(self, progress: float) -> torch.Tensor:
        """The rounded weight; gradients pass the rounding straight through."""
        step = spread(self.fmt, self.steps(), self.shape)
        return (self._codes(step) - self.zero) * step

    def hard(self) -> Arrays:
        """Codes and learned steps; what was not touched is as it was."""
        if not any(bool(p.any()) for p in self.moving):
            return dict(self.start)
        with torch.no_grad():
            codes = self._codes(spread(self.fmt, self.steps(), self.shape))
        return self.with_steps(codes)

    @property
    def moving(self) -> list[torch.Tensor]:
        """Parameters that are zero at the start."""
        return self.parameters

    def _exponent(self) -> torch.Tensor:
        raise NotImplementedError

    def _codes(self, step: torch.Tensor) -> torch.Tensor:
        exact = self.rows / (step * torch.exp(self._exponent()))
        low, high = float(self.fmt.lowest), float(self.fmt.highest)
        return torch.clamp(round_through(exact) + self.zero, low, high)


class FlexRounded(_Divided):
    """One weight with a factor for each element and row; see the module."""

    def __init__(self, rows: torch.Tensor, fmt: IntFormat, start: Arrays) -> None:
        """Begin with all factors 1."""
        super().__init__(rows, fmt, start)
        self._each = torch.zeros_like(rows).requires_grad_()
        self._row = torch.zeros(rows.shape[0], 1).requires_grad_()

    @property
    def parameters(self) -> list[torch.Tensor]:
        """Log steps, S and r."""
        return [self.log_step, self._each, self._row]

    def _exponent(self) -> torch.Tensor:
        return self._each + self._row


class LowRankRounded(_Divided):
    """One weight with factors of low rank; see the module."""

    def __init__(
        self, rows: torch.Tensor, fmt: IntFormat, start: Arrays, *, rank: int, seed: int
    ) -> None:
        """Begin with all factors 1: L is zero and U random, as in LoRA.

        Args:
            rows: the float weight.
            fmt: its format.
            start: rounded to nearest.
            rank: of L U; at most the smaller side is taken.
            seed: of U.
        """
        super().__init__(rows, fmt, start)
        rank = min(rank, *self.shape)
        generator = torch.Generator().manual_seed(seed)
        spread_out = torch.randn(rank, self.shape[1], generator=generator)
        self._up = (spread_out / rank**0.5).requires_grad_()
        self._down = torch.zeros(self.shape[0], rank).requires_grad_()
        self._row = torch.zeros(self.shape[0], 1).requires_grad_()
        self._column = torch.zeros(1, self.shape[1]).requires_grad_()

    @property
    def parameters(self) -> list[torch.Tensor]:
        """Log steps, L, U, r and c."""
        return [*self.moving, self._up]

    @property
    def moving(self) -> list[torch.Tensor]:
        """All but U, which is random at the start."""
        return [self.log_step, self._down, self._row, self._column]

    def _exponent(self) -> torch.Tensor:
        return self._down @ self._up + self._row + self._column
