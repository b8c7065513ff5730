"""The ways to learn a rounding, by the name a recipe gives them, and their options."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch

from onnxq.errors import RecipeError
from onnxq.formats import Arrays, IntFormat
from onnxq.learning.rounding.adaround import AdaRounded
from onnxq.learning.rounding.discquant import DiscRounded
from onnxq.learning.rounding.flexround import FlexRounded, LowRankRounded
from onnxq.learning.rounding.gsq import GumbelRounded
from onnxq.learning.rounding.weight import RoundedWeight
from onnxq.learning.training import Schedule

__all__ = ["METHODS", "AdaRound", "DiscQuant", "FlexRound", "GumbelSoftmax", "LowRank", "Method"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
    """A way to learn a rounding, with its options.

    Attributes:
        steps: gradient steps for each block.
        batch: samples for each step.
        rate: learning rate of Adam.
        threads: of torch; on one the result is the same bytes every time.
    """

    steps: int = 100
    batch: int = 2
    rate: float = 1e-2
    threads: int = 1
    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.rate <= 0:
            raise RecipeError(f"rate is {self.rate}: it must be above 0.")

    def schedule(self, seed: int, inputs: Literal["quantized", "float"]) -> Schedule:
        """How the block loop is asked to train on ``inputs`` of each block."""
        return Schedule(
            steps=self.steps,
            batch=self.batch,
            checks=6,
            inputs=inputs,
            seed=seed,
            threads=self.threads,
        )

    @property
    def penalty_weight(self) -> float:
        """What penalties of weights count, as a part of the loss of rounding to nearest."""
        return 0.0

    @abc.abstractmethod
    def weight(self, rows: torch.Tensor, fmt: IntFormat, start: Arrays, seed: int) -> RoundedWeight:
        """What is learned of one weight."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaRound(Method):
    """Up or down by a rectified sigmoid that is driven to 0 or 1 (AdaRound).

    Attributes:
        pull: weight of the penalty, as a part of the loss of rounding to nearest.
        warmup: share of the way without penalty.
        first: exponent of the penalty after it.
        last: exponent at the end.
    """

    rate: float = 5e-2
    pull: float = 0.1
    warmup: float = 0.2
    first: float = 20.0
    last: float = 2.0
    name: ClassVar[str] = "adaround"

    @property
    def penalty_weight(self) -> float:
        """See `pull`."""
        return self.pull

    def weight(self, rows: torch.Tensor, fmt: IntFormat, start: Arrays, seed: int) -> RoundedWeight:
        """What is learned of one weight."""
        return AdaRounded(rows, fmt, start, warmup=self.warmup, first=self.first, last=self.last)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscQuant(Method):
    """Between two grid points by projected gradients of the distillation loss (DiscQuant).

    Attributes:
        pull: weight of the linear term, as a part of the loss of rounding to nearest.
    """

    rate: float = 3e-2
    pull: float = 0.1
    name: ClassVar[str] = "discquant"

    @property
    def penalty_weight(self) -> float:
        """See `pull`."""
        return self.pull

    def weight(self, rows: torch.Tensor, fmt: IntFormat, start: Arrays, seed: int) -> RoundedWeight:
        """What is learned of one weight."""
        return DiscRounded(rows, fmt, start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlexRound(Method):
    """Divided by a learned factor for each weight and row before rounding (FlexRound)."""

    rate: float = 3e-3
    name: ClassVar[str] = "flexround"

    def weight(self, rows: torch.Tensor, fmt: IntFormat, start: Arrays, seed: int) -> RoundedWeight:
        """What is learned of one weight."""
        return FlexRounded(rows, fmt, start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank(Method):
    """Divided by learned factors of low rank before rounding (LRQ).

    Attributes:
        rank: of the factors.
    """

    rate: float = 3e-3
    rank: int = 32
    name: ClassVar[str] = "lrq"

    def weight(self, rows: torch.Tensor, fmt: IntFormat, start: Arrays, seed: int) -> RoundedWeight:
        """What is learned of one weight."""
        return LowRankRounded(rows, fmt, start, rank=self.rank, seed=seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GumbelSoftmax(Method):
    """The likeliest of the nearest grid points, by Gumbel-softmax (GSQ).

    Attributes:
        candidates: how many codes each weight chooses from.
        first: temperature at the start.
        last: temperature at the end.
        noise: factor of the Gumbel noise.
    """

    rate: float = 2e-2
    candidates: int = 2
    first: float = 0.5
    last: float = 0.05
    noise: float = 0.0
    name: ClassVar[str] = "gsq"

    def weight(self, rows: torch.Tensor, fmt: IntFormat, start: Arrays, seed: int) -> RoundedWeight:
        """What is learned of one weight."""
        return GumbelRounded(
            rows,
            fmt,
            start,
            candidates=self.candidates,
            first=self.first,
            last=self.last,
            noise=self.noise,
            seed=seed,
        )


METHODS: Mapping[str, type[Method]] = {
    kind.name: kind for kind in (AdaRound, FlexRound, LowRank, DiscQuant, GumbelSoftmax)
}
"""Every method by name."""
