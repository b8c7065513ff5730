"""The learning of one block: Adam on a falling cosine rate, the best that was seen is kept.

The loss over all samples is taken at the start, at some checks on the way and at the end; the plain
block, with nothing learned, competes, so the loss never ends above its start. See
`onnxq.learning.reconstruction` for what is minimized.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch

from onnxq.calibration.activations import Held
from onnxq.errors import CalibrationError, RecipeError
from onnxq.learning.operators.types import tensor_of
from onnxq.learning.torch_graph import Tap, TorchGraph

__all__ = ["BlockResult", "Learner", "Schedule", "Setting", "Training", "feeds_of"]

_LEAST = 1e-4
"""Of the mean energy of a row: what keeps rows of zeros, such as padding, from counting."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and on what is learned.

    Attributes:
        steps: gradient steps for each block.
        batch: samples for each step.
        final_rate: what the learning rate falls to, as a part of where it starts.
        checks: how often the loss over all samples is taken, the end included.
        patience: stop after so many checks in a row that brought nothing; 0 never stops.
        inputs: what a block reads: ``quantized``, the model so far, or ``float``.
        seed: of the order of samples.
        threads: of torch; on one thread the result is the same bytes every time.
    """

    steps: int = 32
    batch: int = 2
    final_rate: float = 0.05
    checks: int = 4
    patience: int = 0
    inputs: Literal["quantized", "float"] = "quantized"
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        least = {"steps": 0, "batch": 1, "checks": 1, "patience": 0, "threads": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise RecipeError(f"{name} is {getattr(self, name)}: it must be {low} or more.")


@dataclasses.dataclass(frozen=True)
class Setting:
    """The quantized block at one point: what to put in the place of weights and values.

    Attributes:
        weights: by name of a stored weight.
        taps: by name of a value, see `TorchGraph`.
        penalty: is added to the loss; None adds nothing.
    """

    weights: Mapping[str, torch.Tensor]
    taps: Mapping[str, Tap]
    penalty: torch.Tensor | None = None


class Learner(abc.ABC):
    """What is learned in one block."""

    def watch(self) -> Mapping[str, Tap]:
        """Taps on the float block as it runs on all samples, before anything else is asked."""
        return {}

    def started(self, loss: float) -> None:
        """Told the loss of the plain block, over all samples, before the first step."""
        return None

    @abc.abstractmethod
    def groups(self) -> list[dict[str, Any]]:
        """Parameters and rates as torch optimizers take them: ``params`` and ``lr``."""

    @abc.abstractmethod
    def setting(self, progress: float) -> Setting:
        """The quantized block with the parameters as they are, ``progress`` (0 to 1) of the way."""

    @abc.abstractmethod
    def plain(self) -> Setting:
        """The quantized block with nothing learned."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockResult:
    """What learning brought to one block.

    Attributes:
        name: of the block.
        before: loss with nothing learned, over all samples.
        after: loss of what was kept.
        steps: gradient steps taken.
        progress: how far the kept parameters were on the way, 0 to 1; None when the plain block
            was best and the parameters mean nothing.
    """

    name: str
    before: float
    after: float
    steps: int
    progress: float | None


class Training:
    """The learning of one block."""

    def __init__(
        self,
        graph: TorchGraph,
        inputs: Sequence[Mapping[str, Held]],
        targets: Sequence[Mapping[str, Held]],
        schedule: Schedule,
        name: str,
        number: int,
    ) -> None:
        """Remember what to learn on.

        Args:
            graph: the block.
            inputs: what it reads, for each sample.
            targets: what it is to give, for each sample.
            schedule: how long to learn.
            name: of the block, for messages.
            number: of the block, which with the seed gives the order of samples.

        Raises:
            CalibrationError: the targets are all zero, or no floats.
        """
        self._graph, self._inputs, self._targets = graph, inputs, targets
        self._schedule, self._name, self._number = schedule, name, number
        self._least = _least_energies(targets)
        if not self._least:
            raise CalibrationError(
                f"Block {name!r} gives no float value that is not zero ("
                f"{', '.join(graph.outputs)}): there is nothing to reconstruct; cut elsewhere."
            )

    def learn(self, learner: Learner) -> BlockResult:
        """Train and leave the best parameters in the learner."""
        with torch.no_grad():
            before = self._total(learner.plain())
        learner.started(before)
        best, at = before, None
        groups = learner.groups()
        parameters = [p for group in groups for p in group["params"]]
        done = 0
        if self._schedule.steps and parameters:
            first = self._check(learner, 0.0)
            if first < best:
                best, at = first, 0.0
            kept = [p.detach().clone() for p in parameters]
            idle = 0
            for step, share in self._steps(learner, groups):
                done = step
                if share is None:
                    continue
                found = self._check(learner, share)
                idle += 1
                if found < best:
                    best, at, idle = found, share, 0
                    kept = [p.detach().clone() for p in parameters]
                if self._schedule.patience and idle >= self._schedule.patience:
                    break
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=True):
                    parameter.copy_(value)
        return BlockResult(name=self._name, before=before, after=best, steps=done, progress=at)

    def _steps(
        self, learner: Learner, groups: list[dict[str, Any]]
    ) -> Iterator[tuple[int, float | None]]:
        """Take steps; yields (steps done, progress where a check is due)."""
        steps, count = self._schedule.steps, len(self._inputs)
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
        rates = [group["lr"] for group in optimizer.param_groups]
        every = max(1, math.ceil(steps / self._schedule.checks))
        order = np.random.default_rng([self._schedule.seed, self._number])
        queue: list[int] = []
        for step in range(steps):
            while len(queue) < min(self._schedule.batch, count):
                queue += order.permutation(count).tolist()
            chosen, queue = queue[: self._schedule.batch], queue[self._schedule.batch :]
            fall = 0.5 * (1.0 + math.cos(math.pi * step / steps))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                final = self._schedule.final_rate
                group["lr"] = rate * (final + (1.0 - final) * fall)
            optimizer.zero_grad()
            share = (step + 1) / steps
            setting = learner.setting(share)
            loss = torch.stack([self._loss(i, setting) for i in chosen]).mean()
            if setting.penalty is not None:
                loss = loss + setting.penalty
            if loss.requires_grad:
                loss.backward()
            optimizer.step()
            is_due = (step + 1) % every == 0 or step + 1 == steps
            yield step + 1, share if is_due else None

    def _check(self, learner: Learner, share: float) -> float:
        """The loss over all samples; infinite where it is not a number."""
        with torch.no_grad():
            total = self._total(learner.setting(share), must_be_finite=False)
        return total if math.isfinite(total) else math.inf

    def _total(self, setting: Setting, *, must_be_finite: bool = True) -> float:
        losses = [float(self._loss(i, setting)) for i in range(len(self._inputs))]
        total = math.fsum(losses) / len(losses)
        if must_be_finite and not math.isfinite(total):
            raise CalibrationError(
                f"The quantized block {self._name!r} gives NaN or infinity on the samples: "
                "look at the samples, or quantize it with more bits."
            )
        return total

    def _loss(self, index: int, setting: Setting) -> torch.Tensor:
        """Squared error of one sample, each row of each output relative to its own energy."""
        feeds = feeds_of(self._graph, self._inputs[index])
        results = self._graph(feeds, weights=setting.weights, taps=setting.taps)
        terms = []
        for name, least in self._least.items():
            target = _rows(torch.from_numpy(self._targets[index][name].read()))
            errors = torch.sum((_rows(results[name]) - target) ** 2, dim=-1)
            terms.append(torch.mean(errors / (torch.sum(target**2, dim=-1) + least)))
        return torch.stack(terms).sum()


def feeds_of(graph: TorchGraph, values: Mapping[str, Held]) -> dict[str, torch.Tensor]:
    """What one sample feeds the graph."""
    arrays = {name: values[name].read() for name in graph.inputs}
    return {n: tensor_of(array, ir.DataType.from_numpy(array.dtype)) for n, array in arrays.items()}


def _least_energies(targets: Sequence[Mapping[str, Held]]) -> dict[str, float]:
    """By name of each float output that is not zero throughout, what is added to a row's energy."""
    found = {}
    for name, first in targets[0].items():
        if first.read().dtype.kind != "f":
            continue
        arrays = (_rows(torch.from_numpy(t[name].read())) for t in targets)
        means = [float(torch.mean(torch.sum(rows**2, dim=-1))) for rows in arrays]
        mean = math.fsum(means) / len(means)
        if mean > 0.0 and math.isfinite(mean):
            found[name] = _LEAST * mean
    return found


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """One row for each token, or for each sample of maps."""
    if tensor.ndim < 2:
        return tensor.reshape(1, -1)
    return tensor.reshape(len(tensor), -1) if tensor.ndim > 3 else tensor
