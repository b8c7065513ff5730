"""Learning rotations and scales for a model whose weights and activations are rounded.

Two losses:

- ``blocks``: the mean over all blocks of the squared error of their outputs, relative to each
  token's energy, every block fed what the float model feeds it. A step takes some pairs of a block
  and a sample. Its gradient costs one block, whatever the depth.
- ``outputs``: the divergence KL(p ‖ p̃) of the final outputs over the ``top`` likeliest entries of
  the float model, renormalised (OSTQuant, Hu et al., arXiv:2501.13987, section 3.4). A step takes
  some samples through the whole model.

A quarter of the samples is held back. The loss over these, or 32 pairs of them, is taken at the
start, at some checks and at the end, and the best is kept: on samples that no step has seen it
never ends above its start. A single sample serves for both. All weights are in memory, in float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch

from onnxq.calibration.activations import ActivationStore
from onnxq.calibration.checks import checked_samples
from onnxq.errors import CalibrationError
from onnxq.learning.affine import Reader
from onnxq.learning.pieces import Piece, cut_pieces, read_held
from onnxq.learning.quantizers import TokenQuantizer, WeightQuantizer
from onnxq.learning.rotation import Edit, Unknowns, edited, returned
from onnxq.learning.stiefel import CayleySgd, StiefelAdam, StiefelDescent
from onnxq.learning.torch_graph import TorchGraph
from onnxq.learning.training import feeds_of

__all__ = ["Problem", "RotationResult", "RotationSchedule", "learn_rotations"]

_LEAST = 1e-2
"""Part of the mean energy that is added to that of a token, so that small ones do not rule."""
_BUDGET = 1 << 29
_CHECKED = 32
"""How many pairs of a block and a sample the loss is checked on."""

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A model and what may be folded into it.

    Attributes:
        model: the float model.
        blocks: (number, width) of the matrices by name.
        factors: number of scales by name.
        weights: the edits of stored weights by name.
        values: the edits of values by name.
        readers: stored weights that are rounded.
        points: values that are rounded for each token.
        weight_quantizer: how weights are.
        activation_quantizer: how values are.
        clip: share of the range of a token that is kept.
    """

    model: ir.Model
    blocks: Mapping[str, tuple[int, int]]
    factors: Mapping[str, int]
    weights: Mapping[str, Sequence[Edit]]
    values: Mapping[str, Sequence[Edit]]
    readers: Sequence[Reader]
    points: Sequence[str]
    weight_quantizer: WeightQuantizer
    activation_quantizer: TokenQuantizer
    clip: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotationSchedule:
    """How long and in what way is learned.

    Attributes:
        steps: gradient steps.
        batch: pairs of a block and a sample, or samples, for each.
        rate: of the matrices, as a part of their norm; it falls to a twentieth along a cosine.
        scale_rate: of the logarithms of the scales, by Adam.
        descent: ``riemannian`` or ``cayley``.
        loss: ``blocks`` or ``outputs``.
        top: entries of the final outputs that are compared.
        checks: how often the loss over the fixed set is taken.
        seed: of the order.
        threads: of torch.
    """

    steps: int
    batch: int
    rate: float
    scale_rate: float
    descent: Literal["riemannian", "cayley"]
    loss: Literal["blocks", "outputs"]
    top: int
    checks: int = 4
    seed: int = 0
    threads: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotationResult:
    """What was learned.

    Attributes:
        matrices: orthogonal float64 ``[blocks, width, width]`` by name.
        factors: positive float64 by name.
        before: the loss at the start.
        after: the loss of what is kept.
        steps: steps taken.
    """

    matrices: Mapping[str, np.ndarray]
    factors: Mapping[str, np.ndarray]
    before: float
    after: float
    steps: int


def learn_rotations(
    problem: Problem,
    samples: Iterable[Any],
    schedule: RotationSchedule,
    *,
    progress: Progress | None = None,
) -> RotationResult:
    """Learn all matrices and scales of a problem together, from identities and ones.

    Args:
        problem: left as it is.
        samples: inputs of its model by name.
        schedule: how.
        progress: called with (what, steps done, steps).

    Raises:
        CalibrationError: samples that do not fit, none at all, or a loss that is not finite.
        UnsupportedGraph: an operator that torch does not run here.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(schedule.threads)
    try:
        with ActivationStore(_BUDGET) as store:
            checked = checked_samples(samples, problem.model)
            pieces = cut_pieces(problem.model, checked, store, whole=schedule.loss == "outputs")
            if not any(pieces):
                raise CalibrationError(
                    "There is no sample, or no block with a layer in it, to learn rotations on: "
                    "give calibration samples of a model with attention or feed-forward blocks."
                )
            return _Descent(problem, pieces, schedule).run(progress)
    finally:
        torch.set_num_threads(threads)


class _Descent:
    """One run of learning."""

    def __init__(
        self, problem: Problem, samples: Sequence[Sequence[Piece]], schedule: RotationSchedule
    ) -> None:
        self._problem, self._schedule = problem, schedule
        self._rows = {reader.weight: reader for reader in problem.readers}
        self._now = Unknowns.neutral(problem.blocks, problem.factors)
        kind = {"riemannian": StiefelAdam, "cayley": CayleySgd}[schedule.descent]
        self._movers: dict[tuple[str, int], StiefelDescent] = {
            (name, i): kind() for name, (count, _) in problem.blocks.items() for i in range(count)
        }
        order = np.random.default_rng(schedule.seed)
        back = -(-len(samples) // 4) if len(samples) > 1 else 0
        self._pieces = [piece for sample in samples[: len(samples) - back] for piece in sample]
        checked = [piece for sample in samples[-back:] for piece in sample] or self._pieces
        chosen = order.permutation(len(checked))[:_CHECKED]
        self._fixed = [checked[i] for i in sorted(chosen)]
        self._order = order

    def run(self, progress: Progress | None) -> RotationResult:
        """Descend; the best of all checks is kept."""
        schedule = self._schedule
        before = self._total()
        if not math.isfinite(before):
            raise CalibrationError(
                "The rounded model gives NaN or infinity on the samples: look at the samples, or "
                "round to more bits."
            )
        best, kept = before, self._now.copy()
        factors = list(self._now.log_factors.values())
        adam = torch.optim.Adam(factors, lr=schedule.scale_rate) if factors else None
        every = max(1, math.ceil(schedule.steps / schedule.checks))
        for step in range(schedule.steps):
            if progress is not None:
                progress("learn rotations", step, schedule.steps)
            self._step(step, adam)
            if (step + 1) % every == 0 or step + 1 == schedule.steps:
                found = self._total()
                if found < best:
                    best, kept = found, self._now.copy()
        return RotationResult(
            matrices={name: m.numpy() for name, m in kept.matrices.items()},
            factors={name: np.exp(f.numpy()) for name, f in kept.log_factors.items()},
            before=before,
            after=best,
            steps=schedule.steps,
        )

    def _step(self, step: int, adam: torch.optim.Adam | None) -> None:
        schedule, now = self._schedule, self._now
        fall = 0.05 + 0.475 * (1.0 + math.cos(math.pi * step / schedule.steps))
        if adam is not None:
            adam.param_groups[0]["lr"] = schedule.scale_rate * fall
            adam.zero_grad()
        now.require_gradients()
        chosen = self._order.choice(
            len(self._pieces), min(schedule.batch, len(self._pieces)), False
        )
        for index in chosen:
            loss = self._loss(self._pieces[index]) / len(chosen)
            if loss.requires_grad:
                loss.backward()
        for name, stack in list(now.matrices.items()):
            gradient = stack.grad
            if gradient is None or not bool(gradient.isfinite().all()):
                now.matrices[name] = stack.detach()
                continue
            with torch.no_grad():
                moved = [
                    self._movers[name, i].step(stack[i], gradient[i], schedule.rate * fall)
                    for i in range(len(stack))
                ]
            now.matrices[name] = torch.stack(moved)
        if adam is not None:
            adam.step()

    def _total(self) -> float:
        with torch.no_grad():
            losses = [float(self._loss(piece)) for piece in self._fixed]
        return math.fsum(losses) / len(losses)

    def _loss(self, piece: Piece) -> torch.Tensor:
        problem, now, graph = self._problem, self._now, piece.graph
        feeds = {
            name: edited(tensor, problem.values.get(name, ()), now)
            for name, tensor in feeds_of(graph, piece.inputs).items()
        }
        taps = {name: self._rounded for name in problem.points if name in graph.values}
        results = graph(feeds, weights=self._weights(graph), taps=taps)
        if self._schedule.loss == "outputs":
            name = graph.outputs[0]
            return _divergence(results[name], read_held(piece.targets[name]), self._schedule.top)
        terms = []
        for name, held in piece.targets.items():
            target = read_held(held)
            if not target.is_floating_point():
                continue
            given = returned(results[name], problem.values.get(name, ()), now)
            if torch.equal(given, target):
                continue  # a mask or a table of positions, which no rounding reaches
            energy = (target * target).sum(-1)
            errors = ((given - target) ** 2).sum(-1)
            terms.append((errors / (energy + _LEAST * energy.mean() + 1e-30)).mean())
        return torch.stack(terms).mean() if terms else torch.zeros(())

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        return self._problem.activation_quantizer(x, self._problem.clip)

    def _weights(self, graph: TorchGraph) -> dict[str, torch.Tensor]:
        """Every weight of the graph that is turned, scaled or rounded."""
        found = {}
        for name, stored in graph.weights.items():
            edits, reader = self._problem.weights.get(name, ()), self._rows.get(name)
            if not edits and reader is None:
                continue
            weight = edited(stored, edits, self._now)
            if reader is not None:
                rows = self._problem.weight_quantizer(reader.rows(weight).contiguous())
                weight = reader.rows(rows)
            found[name] = weight
        return found


def _divergence(given: torch.Tensor, target: torch.Tensor, top: int) -> torch.Tensor:
    """Mean KL divergence over the entries that are likeliest by the target."""
    places = target.topk(min(top, target.shape[-1]), -1).indices
    exact = torch.log_softmax(target.gather(-1, places), -1)
    found = torch.log_softmax(given.gather(-1, places), -1)
    return (exact.exp() * (exact - found)).sum(-1).mean()
