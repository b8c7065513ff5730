"""What a change of the weights of one site alone does to the outputs of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from onnxq.calibration.readings import Reading, reading_of
from onnxq.evaluate.output_loss import OutputLoss
from onnxq.graph.orientation import from_rows, to_rows
from onnxq.graph.sites import Site
from onnxq.learning.output_distance import output_distance
from onnxq.learning.torch_graph import TorchGraph

__all__ = ["SingleSiteLoss", "single_site_losses"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SingleSiteLoss:
    """Means over the samples.

    Attributes:
        loss: KL divergence of the scores in nats, or squared error relative to the outputs.
        error: E‖(W − Ŵ) x‖² / E‖W x‖² of the site itself.
    """

    loss: float
    error: float


def single_site_losses(
    model: ir.Model,
    samples: Sequence[Mapping[str, Array]],
    sites: Sequence[Site],
    loss: OutputLoss,
    changed: Callable[[Array], Array],
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, SingleSiteLoss]:
    """Change one site at a time and measure the loss of the model: a run for each on each sample.

    Args:
        model: the float model, left as it is.
        samples: inputs of the model by name.
        sites: of its main graph; those that torch does not run, or whose rows cannot be read, are
            left out of the result.
        loss: which outputs are judged; scores of tokens by their KL divergence, which is smoother
            than the loss of the next token.
        changed: gives the new weight for the old one, ``[rows, columns]`` float32.
        progress: called with ("sensitivity", runs done, runs).

    Raises:
        UnsupportedGraph: torch does not run an operator of the model.
    """
    inputs = [value.name or "" for value in model.graph.inputs]
    graph = TorchGraph(model, inputs=inputs, outputs=loss.outputs, compute=torch.float32)
    seen = [
        (site, reading, site.weight.name or "")
        for site in sites
        if site.weight is not None
        and not isinstance(reading := reading_of(site), str)
        and site.weight.name in graph.weights
        and site.input is not None
        and site.input.name in graph.values
    ]
    sums = {site.name: [0.0, 0.0, 0.0] for site, _, _ in seen}
    total = len(seen) * len(samples)
    with torch.no_grad():
        for number, sample in enumerate(samples):
            feeds = {n: torch.from_numpy(np.ascontiguousarray(sample[n])) for n in inputs}
            activations: dict[str, Array] = {}
            taps = {s.input.name or "": _keep(activations, s) for s, _, _ in seen if s.input}
            before = graph(feeds, taps=taps)
            for place, (site, reading, name) in enumerate(seen):
                weight = graph.weights[name].numpy()
                rows = to_rows(site, weight)
                new = changed(rows)
                x = activations[site.input.name or ""] if site.input else np.empty(0)
                noise, signal = _energies(x, reading, (rows - new, rows))
                stored = torch.from_numpy(from_rows(site, new).reshape(weight.shape))
                after = graph(feeds, weights={name: stored})
                one = sums[site.name]
                one[0] += float(output_distance(before, after, loss))
                one[1], one[2] = one[1] + noise, one[2] + signal
                if progress is not None:
                    progress("sensitivity", number * len(seen) + place + 1, total)
    return {
        name: SingleSiteLoss(loss=apart / len(samples), error=noise / max(signal, 1e-30))
        for name, (apart, noise, signal) in sums.items()
    }


def _keep(into: dict[str, Array], site: Site) -> Callable[[torch.Tensor], torch.Tensor]:
    name = "" if site.input is None else site.input.name or ""

    def tap(value: torch.Tensor) -> torch.Tensor:
        into[name] = value.numpy()
        return value

    return tap


def _energies(x: Array, reading: Reading, weights: Sequence[Array]) -> list[float]:
    """‖W x‖² over all tokens for each weight."""
    sums = [0.0] * len(weights)
    for piece in reading.pieces(x):
        for index, weight in enumerate(weights):
            for part, rows in zip(np.split(weight, len(piece)), piece, strict=True):
                sums[index] += float(np.square(rows @ part.T, dtype=np.float64).sum())
    return sums
