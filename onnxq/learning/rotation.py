"""Orthogonal matrices and scales as something a block is a function of.

What a matrix Q or a scaling s is folded into is a list of edits for each stored weight: `Turn`
multiplies blocks of its channels by Q, `Scale` multiplies or divides channels by s. The values in
between have edits too: `moved` takes a value of the model as it is to what it is with Q and s, and
`returned` takes it back, so a block can be fed what the model had there, and what it gives can be
compared with what the model gave.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Edit", "Scale", "Turn", "Unknowns", "edited", "returned"]


@dataclasses.dataclass(frozen=True)
class Turn:
    """Blocks of channels x become x Q.

    Attributes:
        name: of the matrices, one for each block of channels.
        axes: the axes that tell channels apart; taken together, last axis fastest.
        runs: (position of the first channel, number of the matrix) of each block.
        width: channels in a block.
    """

    name: str
    axes: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]
    width: int


@dataclasses.dataclass(frozen=True)
class Scale:
    """Channels x become x · s or x / s.

    Attributes:
        name: of the factors.
        axes: the axes that tell channels apart.
        ids: the factor at each position of those axes, -1 for none.
        power: 1 or -1.
    """

    name: str
    axes: tuple[int, ...]
    ids: npt.NDArray[np.int64]
    power: int


Edit = Turn | Scale


@dataclasses.dataclass
class Unknowns:
    """What is learned.

    Attributes:
        matrices: orthogonal float64 ``[blocks, width, width]`` by name.
        log_factors: float64 ``[factors]`` by name; s is its exponential.
    """

    matrices: dict[str, torch.Tensor]
    log_factors: dict[str, torch.Tensor]

    @classmethod
    def neutral(cls, blocks: Mapping[str, tuple[int, int]], factors: Mapping[str, int]) -> Unknowns:
        """Identities and ones.

        Args:
            blocks: (number, width) of the matrices by name.
            factors: number of factors by name.
        """
        one = {n: torch.eye(w, dtype=torch.float64).repeat(c, 1, 1) for n, (c, w) in blocks.items()}
        zero = {n: torch.zeros(count, dtype=torch.float64) for n, count in factors.items()}
        return cls(one, zero)

    def copy(self) -> Unknowns:
        """The same numbers in memory of their own, without gradients."""
        return Unknowns(
            {name: m.detach().clone() for name, m in self.matrices.items()},
            {name: f.detach().clone() for name, f in self.log_factors.items()},
        )

    def require_gradients(self) -> None:
        """Let gradients flow to all of them."""
        for tensor in (*self.matrices.values(), *self.log_factors.values()):
            tensor.requires_grad_()


def edited(tensor: torch.Tensor, edits: Sequence[Edit], unknowns: Unknowns) -> torch.Tensor:
    """A weight or value with all edits, one after the other, in its own type."""
    for edit in edits:
        if isinstance(edit, Turn):
            tensor = _turned(tensor, edit, unknowns.matrices[edit.name].to(tensor.dtype))
        else:
            tensor = tensor * _factors(edit, unknowns, tensor)
    return tensor


def returned(tensor: torch.Tensor, edits: Sequence[Edit], unknowns: Unknowns) -> torch.Tensor:
    """Undo `edited`."""
    for edit in reversed(edits):
        if isinstance(edit, Turn):
            back = unknowns.matrices[edit.name].to(tensor.dtype).transpose(-1, -2)
            tensor = _turned(tensor, edit, back)
        else:
            tensor = tensor / _factors(edit, unknowns, tensor)
    return tensor


def _turned(tensor: torch.Tensor, edit: Turn, matrices: torch.Tensor) -> torch.Tensor:
    axes = [axis % tensor.ndim for axis in edit.axes]
    last = list(range(tensor.ndim - len(axes), tensor.ndim))
    moved = tensor.movedim(axes, last)
    rows = moved.flatten(moved.ndim - len(axes))
    parts, place = [], 0
    for start, block in edit.runs:
        parts.append(rows[..., place:start])
        parts.append(rows[..., start : start + edit.width] @ matrices[block])
        place = start + edit.width
    parts.append(rows[..., place:])
    return torch.cat(parts, -1).reshape(moved.shape).movedim(last, axes)


def _factors(edit: Scale, unknowns: Unknowns, like: torch.Tensor) -> torch.Tensor:
    """S or 1/s at each position, 1 where there is none, in a shape that broadcasts."""
    log = unknowns.log_factors[edit.name]
    known = torch.cat([log, log.new_zeros(1)]).to(like.dtype)  # -1 is the last: log 1
    at = {axis % like.ndim: size for axis, size in zip(edit.axes, edit.ids.shape, strict=True)}
    shape = [at.get(axis, 1) for axis in range(like.ndim)]
    return torch.exp(edit.power * known[torch.from_numpy(edit.ids)]).reshape(shape)
