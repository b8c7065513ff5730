"""Learning the rounding of all weights of a model, block by block."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import onnx_ir as ir
import torch

from onnxq.formats import Arrays, IntFormat
from onnxq.graph.orientation import to_rows
from onnxq.graph.sites import Site
from onnxq.learning.blocks import Block, find_blocks
from onnxq.learning.finished_blocks import FinishedBlocks
from onnxq.learning.reconstruction import reconstruct
from onnxq.learning.rounding.methods import Method
from onnxq.learning.rounding.weight import RoundedWeight
from onnxq.learning.torch_graph import TorchGraph
from onnxq.learning.training import BlockResult, Learner, Setting

__all__ = ["RoundingResult", "learn_rounding"]

_CONV = ("Conv", "ConvTranspose")
Progress = Callable[[str, int, int], None]
Start = Callable[[Site, Any, IntFormat], Arrays]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundingResult:
    """The codes of one site and what its block made of them.

    Attributes:
        arrays: as the format encodes them.
        block: the learning of the block it is in.
    """

    arrays: Arrays
    block: BlockResult


def learn_rounding(
    model: ir.Model,
    samples: Iterable[Any],
    formats: Mapping[str, IntFormat],
    start: Start,
    method: Method,
    *,
    inputs: Literal["quantized", "float"] = "quantized",
    seed: int = 0,
    finished: FinishedBlocks | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, RoundingResult], tuple[str, ...]]:
    """Learn the rounding of weights together with the others of their block.

    Args:
        model: left as it is.
        samples: calibration data.
        formats: the format of each site to learn, by name. No weight is read by two sites.
        start: ``start(site, rows, fmt)`` gives the arrays that learning begins with and that it is
            measured against.
        method: how.
        inputs: what a block reads: results of the quantized blocks before it, or float ones.
        seed: of the order of samples and of whatever the method draws.
        finished: blocks that an earlier run has learned.
        progress: called with (name of the block, blocks done, blocks).

    Returns:
        The results by name of the site, of sites that lie in a block; and notes.

    Raises:
        CalibrationError: samples that do not fit.
        UnsupportedGraph: an operator of a block that torch does not run here.
    """
    blocks, notes = find_blocks(model)
    learners: dict[str, _RoundingLearner] = {}

    def learn(block: Block, graph: TorchGraph) -> Learner | None:
        chosen = [site for site in block.sites if site.name in formats]
        if not chosen:
            return None
        learners[block.name] = _RoundingLearner(
            graph, chosen, formats, start, method, seed + len(learners)
        )
        return learners[block.name]

    schedule = method.schedule(seed, inputs)
    results = reconstruct(
        model, samples, blocks, learn, schedule, finished=finished, progress=progress
    )
    found = {}
    for result in results:
        for name, arrays in learners[result.name].arrays(result).items():
            found[name] = RoundingResult(arrays=arrays, block=result)
    return found, notes


class _RoundingLearner(Learner):
    """All weights of one block.

    With gradients the weights are soft; without, as in every check of the loss, they are what would
    be stored, so the best that is kept is the best that can be stored.
    """

    def __init__(
        self,
        graph: TorchGraph,
        sites: Sequence[Site],
        formats: Mapping[str, IntFormat],
        start: Start,
        method: Method,
        seed: int,
    ) -> None:
        self._sites, self._method = tuple(sites), method
        self._weights: dict[str, RoundedWeight] = {}
        self._loss = 1.0
        for number, site in enumerate(sites):
            fmt = formats[site.name]
            rows = to_rows(site, graph.weights[_name(site)].numpy())
            self._weights[site.name] = method.weight(
                torch.tensor(rows), fmt, start(site, rows, fmt), hash_seed(seed, number)
            )

    def started(self, loss: float) -> None:
        """Remember the loss of the plain block, which the penalty is measured by."""
        self._loss = loss

    def groups(self) -> list[dict[str, Any]]:
        """All parameters, some at a tenth of the rate."""
        found = [p for weight in self._weights.values() for p in weight.parameters]
        slow = [p for weight in self._weights.values() for p in weight.slow_parameters]
        groups = [{"params": found, "lr": self._method.rate}]
        return groups + ([{"params": slow, "lr": 0.1 * self._method.rate}] if slow else [])

    def setting(self, progress: float) -> Setting:
        """Soft weights to train on; without gradients those that would be stored."""
        if not torch.is_grad_enabled():
            return self._stored({n: weight.hard() for n, weight in self._weights.items()})
        weights, penalties = {}, []
        for site in self._sites:
            weight = self._weights[site.name]
            weights[_name(site)] = _axes(site, weight.soft(progress))
            penalty = weight.penalty(progress)
            if penalty is not None:
                penalties.append(penalty)
        total = torch.stack(penalties).mean() if penalties else None
        pull = self._method.penalty_weight * self._loss
        return Setting(weights, {}, None if total is None else pull * total)

    def plain(self) -> Setting:
        """Rounded to nearest."""
        return self._stored({name: weight.start for name, weight in self._weights.items()})

    def arrays(self, result: BlockResult) -> dict[str, Arrays]:
        """What to store, by name of the site."""
        if result.progress is None:
            return {name: weight.start for name, weight in self._weights.items()}
        return {name: weight.hard() for name, weight in self._weights.items()}

    def _stored(self, arrays: Mapping[str, Arrays]) -> Setting:
        weights = {
            _name(site): _axes(site, self._weights[site.name].decoded(arrays[site.name]))
            for site in self._sites
        }
        return Setting(weights, {})


def hash_seed(seed: int, number: int) -> int:
    """A seed for the numbered weight of a block."""
    return (seed * 1009 + number) % (1 << 31)


def _name(site: Site) -> str:
    return (site.weight.name if site.weight is not None else None) or ""


def _axes(site: Site, rows: torch.Tensor) -> torch.Tensor:
    """`onnxq.graph.orientation.from_rows` of a torch tensor."""
    shape = tuple(site.shape)
    if site.kind in _CONV:
        rest = [size for axis, size in enumerate(shape) if axis != site.out_axis]
        return rows.reshape(shape[site.out_axis], *rest).movedim(0, site.out_axis)
    lead = [size for axis, size in enumerate(shape) if axis != site.in_axis % len(shape)]
    return rows.reshape(*lead, rows.shape[-1]).movedim(-1, site.in_axis)
