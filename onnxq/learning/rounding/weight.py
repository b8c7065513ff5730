"""What every learned rounding shares: a weight, the grid it is rounded to, and hard codes."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from onnxq.formats import Arrays, IntFormat, PerBlock, PerGroup

__all__ = ["RoundedWeight", "SteppedWeight", "spread"]

Array = npt.NDArray[Any]


def spread(fmt: IntFormat, grouped: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Repeat scales or zeros so that they broadcast against ``shape``; as `IntFormat.spread`."""
    if isinstance(fmt.granularity, PerBlock):
        grouped = grouped.repeat_interleave(fmt.granularity.rows, 0)[: shape[0]]
    if isinstance(fmt.granularity, PerBlock | PerGroup):
        grouped = grouped.repeat_interleave(fmt.group_size(shape[1]), 1)[:, : shape[1]]
    return grouped


class RoundedWeight(abc.ABC):
    """One weight whose rounding is learned.

    Attributes:
        rows: the float weight ``[rows, columns]`` float32.
        fmt: its format.
        start: codes, scales and zeros of rounding to nearest, which learning begins with.
    """

    def __init__(self, rows: torch.Tensor, fmt: IntFormat, start: Arrays) -> None:
        """Begin with rounding to nearest."""
        self.rows, self.fmt, self.start = rows, fmt, start
        self.shape = (rows.shape[0], rows.shape[1])
        self.scale = spread(fmt, torch.from_numpy(start["scales"].astype(np.float32)), self.shape)
        zeros = start.get("zeros")
        self.zero = torch.zeros(1, 1)
        if zeros is not None:
            self.zero = spread(fmt, torch.from_numpy(zeros.astype(np.float32)), self.shape)

    @property
    @abc.abstractmethod
    def parameters(self) -> list[torch.Tensor]:
        """What is learned."""

    @property
    def slow_parameters(self) -> list[torch.Tensor]:
        """What is learned at a tenth of the rate."""
        return []

    @abc.abstractmethod
    def soft(self, progress: float) -> torch.Tensor:
        """The weight ``[rows, columns]`` that is trained through, ``progress`` of the way."""

    @abc.abstractmethod
    def hard(self) -> Arrays:
        """The arrays that would be stored for the parameters as they are."""

    def penalty(self, progress: float) -> torch.Tensor | None:
        """What draws the soft weight to the grid, a mean over elements; None for nothing."""
        return None

    def decoded(self, arrays: Arrays) -> torch.Tensor:
        """The weight that arrays stand for."""
        return torch.from_numpy(self.fmt.decode(arrays))

    def with_codes(self, codes: torch.Tensor) -> Arrays:
        """The starting arrays with other codes, given as whole floats."""
        dtype = self.start["codes"].dtype
        return {**self.start, "codes": codes.detach().numpy().astype(dtype)}

    def below(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The code below each weight, and how far the weight is on the way to the next, in [0, 1].

        Both codes of a pair are in the format: a weight outside the range gets the last pair, with
        the part 0 or 1.
        """
        exact = self.rows / self.scale + self.zero
        low, high = float(self.fmt.lowest), float(self.fmt.highest)
        floor = torch.clamp(torch.floor(exact), low, high - 1.0)
        return floor, torch.clamp(exact - floor, 0.0, 1.0)


class SteppedWeight(RoundedWeight):
    """A weight whose steps, one for each group, are learned beside its codes.

    Attributes:
        log_step: the logarithm of what each step is multiplied by; 0 at the start.
    """

    def __init__(self, rows: torch.Tensor, fmt: IntFormat, start: Arrays) -> None:
        """Begin with the steps of rounding to nearest."""
        super().__init__(rows, fmt, start)
        self._given = torch.from_numpy(start["scales"].astype(np.float32))
        self.log_step = torch.zeros_like(self._given).requires_grad_()

    def steps(self) -> torch.Tensor:
        """The steps as they are stored, straight through where they are rounded."""
        steps = self._given * torch.exp(self.log_step)
        stored = self.fmt.stored_scales(steps.detach()).float()
        return steps + (stored - steps).detach()

    def with_steps(self, codes: torch.Tensor) -> Arrays:
        """Codes, given as whole floats, and the steps as they are."""
        given = (self._given * torch.exp(self.log_step)).detach().numpy()
        scales = self.fmt.stored_scales(given).astype(self.start["scales"].dtype)
        return {**self.with_codes(codes), "scales": scales}
