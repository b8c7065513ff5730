"""What each site adds to the loss of a model in which all sites are rounded at once.

With the errors E_s of all weights in place, let L be the loss against the float model. One backward
pass gives for every site

    b_s = ⟨∂L/∂E_s, E_s⟩,

the derivative of the loss by the size of that error alone. As far as L is quadratic in the errors,
b_s = ⟨E_s, H_ss E_s⟩ + Σ_r ⟨E_s, H_sr E_r⟩ with H the Hessian, so ½ b_s is the loss of the site by
itself and its half of what it costs together with the others, and Σ ½ b_s = L (Euler). Nothing is
taken as independent: neither rows, nor tokens, nor sites.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from onnxq.evaluate.output_loss import OutputLoss
from onnxq.graph.orientation import from_rows
from onnxq.graph.sites import Site
from onnxq.learning.output_distance import next_token_rise, output_distance
from onnxq.learning.torch_graph import TorchGraph

__all__ = ["SiteMarginals", "site_marginals"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteMarginals:
    """Sample by sample.

    Attributes:
        losses: L, float64 ``[samples]``.
        rises: what the model is judged by: of ``next_token``, how much less likely the tokens that
            follow have become, in nats; else L itself.
        halves: ½ b, float64 ``[samples]``, by name of the site.
    """

    losses: Array
    rises: Array
    halves: Mapping[str, Array]


def site_marginals(
    model: ir.Model,
    samples: Sequence[Mapping[str, Array]],
    sites: Sequence[Site],
    rounded: Mapping[str, Array],
    loss: OutputLoss,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> SiteMarginals:
    """Put all rounded weights in place and take the gradient of the loss.

    Args:
        model: the float model, left as it is.
        samples: inputs of the model by name; a few are enough.
        sites: of its main graph. Those that torch does not run, that no gradient reaches, or that
            have no rounded weight are left out of the result. Sites that share a weight share its
            derivative equally.
        rounded: by name of the site, float32 ``[rows, columns]`` as
            `onnxq.graph.orientation.to_rows` lays them out.
        loss: which outputs are judged, as `onnxq.learning.output_distance` does.
        progress: called with ("marginal losses", samples done, samples).

    Raises:
        UnsupportedGraph: torch does not run an operator of the model.
    """
    inputs = [value.name or "" for value in model.graph.inputs]
    graph = TorchGraph(model, inputs=inputs, outputs=loss.outputs, compute=torch.float32)
    readers: dict[str, list[str]] = {}
    placed: dict[str, torch.Tensor] = {}
    for site in sites:
        weight = None if site.weight is None else site.weight.name
        if weight is None or weight not in graph.weights or site.name not in rounded:
            continue
        readers.setdefault(weight, []).append(site.name)
        stored = from_rows(site, rounded[site.name]).reshape(tuple(graph.weights[weight].shape))
        placed[weight] = torch.from_numpy(np.ascontiguousarray(stored)).requires_grad_()
    losses, rises, halves = [], [], [dict[str, float]() for _ in samples]
    for number, sample in enumerate(samples):
        if progress is not None:
            progress("marginal losses", number, len(samples))
        feeds = {name: torch.from_numpy(np.ascontiguousarray(sample[name])) for name in inputs}
        with torch.no_grad():
            wanted = graph(feeds)
        given = graph(feeds, weights=placed)
        apart = output_distance(wanted, given, loss)
        losses.append(float(apart.detach()))
        is_text = loss.kind == "next_token"
        rises.append(
            next_token_rise(wanted, given, feeds[loss.tokens], loss) if is_text else losses[-1]
        )
        if apart.requires_grad:
            apart.backward()
        for weight, names in readers.items():
            half = _half(graph.weights[weight], placed[weight])
            if half is not None:
                halves[number].update(dict.fromkeys(names, half / len(names)))
    return SiteMarginals(
        losses=np.array(losses),
        rises=np.array(rises),
        halves={
            name: np.array([found[name] for found in halves])
            for name in dict.fromkeys(name for names in readers.values() for name in names)
            if all(name in found for found in halves)
        },
    )


def _half(exact: torch.Tensor, placed: torch.Tensor) -> float | None:
    """½ ⟨∂L/∂Ŵ, Ŵ − W⟩; the gradient is taken away."""
    if placed.grad is None:
        return None
    half = 0.5 * float((placed.grad * (placed.detach() - exact)).sum(dtype=torch.float64))
    placed.grad = None
    return half
