"""Block reconstruction: learn what makes the quantized block give what the float block gave.

Blocks are visited in execution order. For block b with float function f and its quantized
simulation g(·; θ), θ is found by Adam on a falling cosine rate from

    min over θ   E over samples and tokens t  Σ over outputs v  ‖g_vt(x̃; θ) − f_vt(x)‖² / ‖f_vt(x)‖²

where x is the input of the block in the float model and x̃ its input in the model quantized so far
(or x again, as FlatQuant does). Every token counts relative to its own size, where the papers take
the plain squared error: a few tokens of a decoder are hundreds of times as large as the others, and
the norm behind makes all equal again. (BRECQ, Li et al., arXiv:2102.05426, section 3.2;
AffineQuant, Ma et al., arXiv:2403.12544; FlatQuant, Sun et al., arXiv:2410.09426.)

The loss over all samples is taken at the start, at some checks on the way and at the end, and what
is kept is the best of them; the plain block, with nothing learned, competes. So the loss never
ends above its start. In memory are the activations of one cut, beyond a budget in a file without a
name, and the weights and gradients of one block.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from onnxq.calibration.activations import ActivationStore, Held
from onnxq.calibration.checks import checked_samples
from onnxq.learning.blocks import Block
from onnxq.learning.finished_blocks import FinishedBlocks
from onnxq.learning.torch_graph import TorchGraph
from onnxq.learning.training import (
    BlockResult,
    Learner,
    Schedule,
    Setting,
    Training,
    feeds_of,
)

__all__ = ["BlockResult", "Learner", "Schedule", "Setting", "reconstruct"]

Progress = Callable[[str, int, int], None]
Learn = Callable[[Block, TorchGraph], Learner | None]

_BUDGET = 1 << 29
"""Bytes of activations in memory, as in `onnxq.calibration.site_statistics`."""


def reconstruct(
    model: ir.Model,
    samples: Iterable[Any],
    blocks: Sequence[Block],
    learn: Learn,
    schedule: Schedule,
    *,
    memory_budget: int = _BUDGET,
    finished: FinishedBlocks | None = None,
    progress: Progress | None = None,
) -> list[BlockResult]:
    """Learn block after block; what was learned is left in the learners.

    Args:
        model: the float model; it is left as it is.
        samples: inputs of the model by name.
        blocks: of this model, from `find_blocks`.
        learn: makes the learner of a block, or None to leave the block in float.
        schedule: how long and on what.
        memory_budget: bytes of activations to keep in memory; the rest goes to a file.
        finished: finds blocks that an earlier run has learned, and keeps those of this one.
        progress: called with (name of the block, blocks done, blocks).

    Returns:
        One result for each block with a learner.

    Raises:
        CalibrationError: samples that do not fit, or a loss that is not finite; the message names
            the block.
        UnsupportedGraph: an operator that torch does not run here.
    """
    results = []
    with ActivationStore(memory_budget) as store, _threads(schedule.threads):
        walk = _Walk(model, store, schedule, finished or FinishedBlocks())
        walk.load(checked_samples(samples, model), blocks)
        for number, block in enumerate(blocks):
            if progress is not None:
                progress(block.name, number, len(blocks))
            result = walk.visit(block, learn, number)
            if result is not None:
                results.append(result)
        if progress is not None and blocks:
            progress(blocks[-1].name, len(blocks), len(blocks))
    return results


class _Walk:
    """Values alive at the current cut: of the quantized model, and of the float one beside it."""

    def __init__(
        self,
        model: ir.Model,
        store: ActivationStore,
        schedule: Schedule,
        finished: FinishedBlocks,
    ) -> None:
        self._model, self._store, self._schedule = model, store, schedule
        self._finished = finished
        self._now: list[dict[str, Held]] = []
        self._float: list[dict[str, Held]] = []

    def load(self, samples: Iterable[Mapping[str, np.ndarray]], blocks: Sequence[Block]) -> None:
        """Keep what the blocks read of each sample."""
        used = {name for block in blocks for name in block.inputs}
        for sample in samples:
            held = {n: self._store.hold(array) for n, array in sample.items() if n in used}
            self._now.append(held)
            self._float.append(dict(held))

    def visit(self, block: Block, learn: Learn, number: int) -> BlockResult | None:
        """Learn one block and go on to the next cut."""
        graph = TorchGraph(
            self._model, inputs=block.inputs, outputs=block.outputs, compute=torch.float32
        )
        learner = learn(block, graph)
        self._finished.enter(block.name, [site.name for site in block.sites])
        plain = Setting({}, {})
        watching = plain if learner is None else Setting({}, learner.watch())
        targets = [self._hold(self._run(graph, values, watching)) for values in self._float]
        if learner is None:
            kept, result = plain, None
        else:
            given = self._now if self._schedule.inputs == "quantized" else self._float
            training = Training(graph, given, targets, self._schedule, block.name, number)
            result = self._learned(training, learner)
            with torch.no_grad():
                is_plain = result.progress is None
                kept = learner.plain() if is_plain else learner.setting(result.progress or 0.0)
        for index, target in enumerate(targets):
            now, exact = self._now[index], self._float[index]
            after = target
            if self._schedule.inputs == "quantized" and (
                learner is not None or any(now[name] is not exact[name] for name in block.inputs)
            ):
                after = self._hold(self._run(graph, now, kept))
            self._now[index] = _living(block, now, after)
            self._float[index] = _living(block, exact, target)
        return result

    def _learned(self, training: Training, learner: Learner) -> BlockResult:
        """The block as an earlier run has learned it, else as it is learned now."""
        parameters = [p for group in learner.groups() for p in group["params"]]
        about = self._finished.read(parameters)
        if about is not None:
            return BlockResult(**about)
        result = training.learn(learner)
        self._finished.keep(parameters, dataclasses.asdict(result))
        return result

    def _run(
        self, graph: TorchGraph, values: Mapping[str, Held], setting: Setting
    ) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return graph(feeds_of(graph, values), weights=setting.weights, taps=setting.taps)

    def _hold(self, results: Mapping[str, torch.Tensor]) -> dict[str, Held]:
        return {name: self._store.hold(tensor.numpy()) for name, tensor in results.items()}


def _living(
    block: Block, before: Mapping[str, Held], results: Mapping[str, Held]
) -> dict[str, Held]:
    """Values alive behind the block: new ones, and those that live on."""
    return {n: held for n, held in {**before, **results}.items() if n in block.passed}


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
