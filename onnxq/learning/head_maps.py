"""Maps that lie in the weights alone: one matrix for each key-value head of an attention.

What the value projection gives is multiplied by A⁻¹, head by head, and what the output projection
reads of it by A: the attention is linear in its values, so nothing else changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from onnxq.learning.matrices import DominantBlocks

__all__ = ["HeadMap", "HeadWeight"]


@dataclasses.dataclass(frozen=True)
class HeadWeight:
    """A stored weight with the channels of heads along one axis.

    Attributes:
        weight: its name.
        axis: the axis of the channels.
        runs: (first channel, key-value head) of every head in it.
        reads: whether it multiplies the channels; else it gives them.
    """

    weight: str
    axis: int
    runs: tuple[tuple[int, int], ...]
    reads: bool


@dataclasses.dataclass(frozen=True)
class HeadMap:
    """One matrix for each key-value head of an attention.

    Attributes:
        blocks: the matrices A.
        weights: everything that gives or reads the channels.
    """

    blocks: DominantBlocks
    weights: tuple[HeadWeight, ...]

    def moved(self, floats: Mapping[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor]:
        """The weights with A⁻¹ behind what gives the channels and A before what reads them."""
        matrices = self.blocks.matrices(progress)
        inverses = torch.linalg.inv(matrices)
        found: dict[str, torch.Tensor] = {}
        for part in self.weights:
            stored = found.get(part.weight, floats[part.weight])
            by = matrices.transpose(1, 2) if part.reads else inverses
            found[part.weight] = _turned(stored, part, by)
        return found

    def folded(self, progress: float) -> npt.NDArray[np.float64]:
        """A ``[heads, width, width]`` as it is folded, with the mask of that place on the way."""
        with torch.no_grad():
            found = self.blocks.matrices(progress)
        return np.asarray(found.numpy().astype(np.float64))


def _turned(stored: torch.Tensor, part: HeadWeight, by: torch.Tensor) -> torch.Tensor:
    """Every head of a weight multiplied on the right, along the axis of its channels."""
    size = by.shape[-1]
    rows = stored.movedim(part.axis, -1)
    pieces, place = [], 0
    for start, head in part.runs:
        pieces += [rows[..., place:start], rows[..., start : start + size] @ by[head]]
        place = start + size
    return torch.cat([*pieces, rows[..., place:]], dim=-1).movedim(-1, part.axis)
