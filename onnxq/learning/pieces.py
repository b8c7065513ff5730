"""Parts of a model whose outputs are compared, each with what the float model feeds and gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
import torch

from onnxq.calibration.activations import ActivationStore, Held
from onnxq.learning.blocks import find_blocks
from onnxq.learning.torch_graph import TorchGraph
from onnxq.learning.training import feeds_of

__all__ = ["Piece", "cut_pieces", "read_held"]


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """Something whose loss can be taken, on one sample.

    Attributes:
        graph: a block, or the whole model.
        inputs: what the float model feeds it.
        targets: what the float model gives there.
    """

    graph: TorchGraph
    inputs: Mapping[str, Held]
    targets: Mapping[str, Held]


def cut_pieces(
    model: ir.Model,
    samples: Iterable[Mapping[str, np.ndarray]],
    store: ActivationStore,
    *,
    whole: bool,
) -> list[list[Piece]]:
    """Of each sample, one piece for each block or for all, with what the float model gives.

    Args:
        model: the float model.
        samples: inputs of it by name.
        store: keeps the activations.
        whole: one piece from the inputs to the first output, instead of blocks.
    """
    if whole:
        spans = [
            (
                [v.name or "" for v in model.graph.inputs],
                [v.name or "" for v in model.graph.outputs[:1]],
            )
        ]
    else:
        blocks, _ = find_blocks(model)
        spans = [(list(block.inputs), list(block.outputs)) for block in blocks]
    graphs = [TorchGraph(model, inputs=i, outputs=o, compute=torch.float32) for i, o in spans]
    kept = {name for inputs, _ in spans for name in inputs}
    pieces: list[list[Piece]] = []
    for sample in samples:
        held = {n: store.hold(array) for n, array in sample.items() if n in kept}
        pieces.append([])
        for graph in graphs:
            with torch.no_grad():
                given = graph(feeds_of(graph, held))
            targets = {n: store.hold(tensor.numpy()) for n, tensor in given.items()}
            pieces[-1].append(Piece(graph, {n: held[n] for n in graph.inputs}, targets))
            held |= targets
    return pieces


def read_held(held: Held) -> torch.Tensor:
    """A kept activation."""
    return torch.from_numpy(held.read())
