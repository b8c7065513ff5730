"""What an error at the output of a site costs at the end of the model, to second order.

Let L be the loss of a model that gives y' where the float model gives y: the KL divergence of its
scores, or the squared error of its outputs relative to their size (`onnxq.evaluate.output_loss`).
At y' = y the loss and its gradient are 0, and its Hessian is that of the outputs alone
(Gauss-Newton, for KL the Fisher information F). A cotangent c with E[c cᵀ] = F is drawn for every
sample: for scores p − one-hot of a label drawn from p, for vectors a normal one. One backward pass
brings it to every site at once, where it is a gradient g_t for each token t, and of the weight
G = Σ_t g_t x_tᵀ. For a weight that is off by E, with rows e_i and G_i,

    L ≈ ½ E_c ⟨G, E⟩² / N ≈ ½ Σ_i E_c (G_i · e_i)² / N ≈ ½ Σ_i f_i · e_i M e_iᵀ,

N the decisions of the loss. The second step takes errors of different rows as independent, which
those of solvers that round rows one by one are; the third takes the second moments of all G_i as
one matrix M times a number f_i: E‖G_i‖², and E[Gᵀ G] / Σ f. All tokens of a sample meet in G: the
errors that a key or a value makes at many tokens add up there. Where only squares of single tokens
are summed, as in the factors of K-FAC (Martens and Grosse, arXiv:1503.05671) and of GuidedQuant
(Kim et al., arXiv:2505.07004), they would cost half to a third of what they do.

The trace of the Hessian over the weights, which HAWQ-V2 (Dong et al., arXiv:1911.03852) estimates
by Hutchinson's method with two backward passes, is here E_c ‖G‖²: the same estimator with the
random vector on the side of the outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from onnxq.calibration.readings import Reading, reading_of
from onnxq.errors import CalibrationError, UsageError
from onnxq.evaluate.output_loss import OutputLoss
from onnxq.graph.sites import Site
from onnxq.learning.output_distance import are_probabilities
from onnxq.learning.torch_graph import TorchGraph

__all__ = ["OutputCurvature", "output_curvature"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputCurvature:
    """What a weight error costs: ½ Σ_i rows_i · e_i matrix e_iᵀ.

    Attributes:
        rows: f, float64 ``[rows]``, in units of the loss.
        matrix: M, float32 ``[groups, columns, columns]``; one group but for grouped convolutions.
            None where only rows were asked for.
        trace: of the Hessian over all weights of the site.
    """

    rows: Array
    matrix: Array | None
    trace: float


class _Sums:
    """The sums of one site over samples and draws."""

    def __init__(self, site: Site, reading: Reading, *, matrices: bool) -> None:
        self.site, self.reading, self.matrices = site, reading, matrices
        self.rows: Array | float = 0.0
        self.matrix: Array | float = 0.0
        self.is_seen = False

    def add(self, x: Array, gradients: Sequence[Array]) -> None:
        """Add a sample: the activation as the site reads it, its gradients for every draw."""
        pieces = np.concatenate(list(self.reading.pieces(x)), axis=1)
        groups, count, _ = pieces.shape
        for gradient in gradients:
            by_rows = _by_rows(gradient, self.site, count)
            split = by_rows.reshape(count, groups, -1).transpose(1, 2, 0)
            weights = split @ pieces
            self.rows = self.rows + np.square(weights, dtype=np.float64).sum(axis=2).ravel()
            if self.matrices:
                self.matrix = self.matrix + np.stack([one.T @ one for one in weights])
        self.is_seen = True

    def result(self, decisions: float) -> OutputCurvature:
        """The means over decisions."""
        rows = np.asarray(self.rows) / decisions
        if not self.matrices:
            return OutputCurvature(rows=rows, matrix=None, trace=float(rows.sum()))
        matrix = np.asarray(self.matrix) / decisions
        sums = rows.reshape(len(matrix), -1).sum(axis=1)
        matrix = matrix / np.where(sums > 0, sums, 1.0)[:, None, None]
        return OutputCurvature(rows=rows, matrix=matrix.astype(np.float32), trace=float(rows.sum()))


def _by_rows(gradient: Array, site: Site, count: int) -> Array:
    """The gradient as ``[tokens or positions, output features]``."""
    if site.kind in ("Conv", "ConvTranspose"):
        return np.moveaxis(gradient, 1, -1).reshape(count, -1)
    if site.weight_index == 0:
        gradient = np.moveaxis(gradient, -2, -1)
    return gradient.reshape(count, -1)


def output_curvature(
    model: ir.Model,
    samples: Iterable[Mapping[str, Array]],
    sites: Sequence[Site],
    loss: OutputLoss,
    *,
    draws: int = 1,
    seed: int = 0,
    matrices: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, OutputCurvature]:
    """Measure the curvature of the loss at every site at once.

    Args:
        model: the float model, left as it is.
        samples: inputs of the model by name; a few are enough.
        sites: of the main graph of ``model``; those whose rows cannot be read, and those that no
            gradient reaches, are left out of the result.
        loss: which outputs are judged, and how.
        draws: cotangents for each sample; a backward pass each.
        seed: of the draws.
        matrices: also find M, which takes memory for all sites at once.
        progress: called with ("sensitivity", samples done, 0).

    Returns:
        By name of the site.

    Raises:
        UnsupportedGraph: torch does not run an operator of the model.
        CalibrationError: there are no samples.
        UsageError: an output has no such name.
    """
    graph = TorchGraph(
        model,
        inputs=[value.name or "" for value in model.graph.inputs],
        outputs=loss.outputs,
        compute=torch.float32,
    )
    readings = ((site, reading_of(site)) for site in sites)
    sums = {
        site.name: _Sums(site, reading, matrices=matrices)
        for site, reading in readings
        if not isinstance(reading, str) and site.output.name in graph.values
    }
    generator = torch.Generator().manual_seed(seed)
    decisions = 0.0
    for number, sample in enumerate(samples):
        decisions += _add_sample(graph, sample, sums, loss, draws, generator)
        if progress is not None:
            progress("sensitivity", number + 1, 0)
    if not decisions:
        raise CalibrationError("There are no samples to measure sensitivity on: give at least one.")
    return {name: one.result(decisions) for name, one in sums.items() if one.is_seen}


def _add_sample(
    graph: TorchGraph,
    sample: Mapping[str, Array],
    sums: Mapping[str, _Sums],
    loss: OutputLoss,
    draws: int,
    generator: torch.Generator,
) -> float:
    """One forward pass, ``draws`` backward; returns the decisions of them all."""
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def tap(value: torch.Tensor) -> torch.Tensor:
            if name in outputs:
                value = value if value.requires_grad else value.detach().requires_grad_()
                value.retain_grad()
            seen[name] = value
            return value

        return tap

    outputs = {one.site.output.name or "" for one in sums.values()}
    inputs = {one.site.input.name or "" for one in sums.values() if one.site.input is not None}
    feeds = {name: torch.from_numpy(np.ascontiguousarray(sample[name])) for name in graph.inputs}
    given = graph(feeds, taps={name: watch(name) for name in (outputs | inputs) & graph.values})
    judged = [given[name] for name in loss.outputs]
    if not any(value.requires_grad for value in judged):
        raise UsageError(f"No site leads to the outputs {', '.join(loss.outputs)}.")
    gradients: dict[str, list[Array]] = {name: [] for name in sums}
    decisions = 0.0
    for draw in range(draws):
        cotangents = [_cotangent(value.detach(), loss, generator) for value in judged]
        decisions += _decisions(judged, loss)
        torch.autograd.backward(judged, cotangents, retain_graph=draw + 1 < draws)
        for name, one in sums.items():
            y = seen[one.site.output.name or ""]
            if y.grad is not None:
                gradients[name].append(y.grad.numpy())
        for value in seen.values():
            value.grad = None
    for name, one in sums.items():
        if gradients[name] and one.site.input is not None:
            one.add(seen[one.site.input.name or ""].detach().numpy(), gradients[name])
    return decisions


def _cotangent(value: torch.Tensor, loss: OutputLoss, generator: torch.Generator) -> torch.Tensor:
    """A random vector whose second moment is the Hessian of the loss at no error."""
    if loss.kind == "vectors":
        normal = torch.randn(value.shape, generator=generator)
        size = max(float(value.norm()), 1e-15) * len(loss.outputs) ** 0.5
        return normal * (2**0.5 / size)
    rows = value.reshape(-1, value.shape[-1]).float()
    is_given = are_probabilities(rows)
    rows = rows if is_given else torch.softmax(rows, dim=-1)
    labels = torch.multinomial(rows, 1, generator=generator)
    if is_given:  # the gradient of −ln p of the label, by p
        chosen = rows.gather(1, labels)
        return torch.zeros_like(rows).scatter_(1, labels, -1 / chosen).reshape(value.shape)
    rows.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=rows.dtype))
    return rows.reshape(value.shape)


def _decisions(judged: Sequence[torch.Tensor], loss: OutputLoss) -> float:
    """What the loss is a mean over: rows of scores, or samples."""
    if loss.kind == "vectors":
        return 1.0
    return float(sum(value.numel() // value.shape[-1] for value in judged))
