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
        pull: weight of the penalty that draws weights to the grid, as a part of the loss of
            rounding to nearest; methods without a penalty do not use it.
        learn_threads: of torch; on one the result is the same bytes every time.
    """

    steps: int = 200
    batch: int = 2
    rate: float = 1e-2
    pull: float = 0.1
    learn_threads: int = 1
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
            threads=self.learn_threads,
        )

    @abc.abstractmethod
    def weight(self, rows: torch.Tensor, fmt: IntFormat, start: Arrays, seed: int) -> RoundedWeight:
        """What is learned of one weight."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaRound(Method):
    """See `onnxq.learning.rounding.adaround`.

    Attributes:
        warmup: share of the way without penalty.
        first: exponent of the penalty after it.
        last: exponent at the end.
    """

    rate: float = 3e-2
    warmup: float = 0.2
    first: float = 20.0
    last: float = 2.0
    name: ClassVar[str] = "adaround"

    def weight(self, rows: torch.Tensor, fmt: IntFormat, start: Arrays, seed: int) -> RoundedWeight:
        """What is learned of one weight."""
        return AdaRounded(rows, fmt, start, warmup=self.warmup, first=self.first, last=self.last)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscQuant(Method):
    """See `onnxq.learning.rounding.discquant`."""

    name: ClassVar[str] = "discquant"

    def weight(self, rows: torch.Tensor, fmt: IntFormat, start: Arrays, seed: int) -> RoundedWeight:
        """What is learned of one weight."""
        return DiscRounded(rows, fmt, start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlexRound(Method):
    """See `onnxq.learning.rounding.flexround`."""

    rate: float = 3e-3
    name: ClassVar[str] = "flexround"

    def weight(self, rows: torch.Tensor, fmt: IntFormat, start: Arrays, seed: int) -> RoundedWeight:
        """What is learned of one weight."""
        return FlexRounded(rows, fmt, start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank(Method):
    """LRQ, see `onnxq.learning.rounding.flexround`.

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
    """See `onnxq.learning.rounding.gsq`.

    Attributes:
        candidates: how many codes each weight chooses from.
        first: temperature at the start.
        last: temperature at the end.
        noise: factor of the Gumbel noise.
    """

    rate: float = 1e-2
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
