"""Trying factors: what the rounding of scaled weights and activations does to the output.

For readers W of one activation and factors s, on rows X of the calibration data (`Simulation`)

    loss(s) = mean over W and over rows x of ‖W x − Q_w(W diag(s)) Q_a(x / s)‖² / ‖W x‖²

so that a token whose activations are hundreds of times those of others, as the first of a text
often is, counts as one token; or, when only weights are rounded, on the second moment H = E[x xᵀ]
of all tokens (`weight_loss`)

    loss(s) = mean over W of tr(E H Eᵀ) / tr(W H Wᵀ),      E = W − Q_w(W diag(s)) diag(1/s)

which needs no activations. Q_w rounds to the nearest code of the format that will store the
weights, Q_a symmetrically with one step for each row, or one for all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxq.formats import IntFormat
from onnxq.solvers.nearest import Search, nearest

__all__ = ["Reader", "Simulation", "best_of", "some_rows", "weight_loss"]

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]
Loss = Callable[[Vector], float]

_OUTPUTS = 256
"""Of weights with more rows, this many are tried, evenly spaced: enough to choose one exponent."""
_BETTER = 1e-3
"""How much lower, relatively, a loss has to be for the weights to be changed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """One weight and what it multiplies.

    Attributes:
        weight: float32 [rows, columns].
        rows: float32 [tokens, columns], what it multiplies.
        spread: brings factors, [count], to one for each column.
        peak: float64 [columns], max|x| on all samples: the range of one step for all rows.
    """

    weight: Array
    rows: Array
    spread: Callable[[Vector], Vector]
    peak: Vector


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulation:
    """How weights and activations will be rounded.

    Attributes:
        fmt: of the weights; None leaves them in float.
        bits: of the activations; 0 leaves them in float.
        granularity: one step for each ``token``, or one for the whole ``tensor``.
        search: how the scales of the weights are found.
    """

    fmt: IntFormat | None
    bits: int
    granularity: Literal["token", "tensor"] = "token"
    search: Search = "minmax"

    def loss(self, readers: Iterable[Reader]) -> Loss:
        """The loss as a function of the factors."""
        given = [(reader, reader.rows @ reader.weight.T) for reader in readers]
        energies = [_squares(exact) for _, exact in given]

        def loss(factors: Vector) -> float:
            total = 0.0
            for (reader, exact), energy in zip(given, energies, strict=True):
                error = _squares(self._output(reader, factors) - exact)
                total += float(np.mean(error / np.where(energy > 0, energy, 1.0)))
            return total / max(len(given), 1)

        return loss

    def _output(self, reader: Reader, factors: Vector) -> Array:
        by = reader.spread(factors)
        weight = reader.weight * by.astype(np.float32)
        if self.fmt is not None:
            weight = self.fmt.decode(nearest(weight, self.fmt, search=self.search))
        rows = reader.rows / by.astype(np.float32)
        output: Array = self._rounded(rows, reader.peak / by) @ weight.T
        return output

    def _rounded(self, rows: Array, peak: Vector) -> Array:
        if not self.bits:
            return rows
        top = np.float32((1 << (self.bits - 1)) - 1)
        reach = np.abs(rows).max(axis=1, keepdims=True, initial=0)
        if self.granularity == "tensor":
            reach = np.full_like(reach, peak.max(initial=0))
        step = np.where(reach > 0, reach / top, np.float32(1))
        return np.asarray(np.clip(np.rint(rows / step), -top - 1, top) * step)


def weight_loss(
    weights: Iterable[tuple[Array, Array, Callable[[Vector], Vector]]],
    fmt: IntFormat,
    search: Search = "minmax",
) -> Loss:
    """The loss of weights alone, as a function of the factors.

    Args:
        weights: for each, float32 [rows, columns], the second moment [columns, columns] of what it
            multiplies, and what brings factors to its columns.
        fmt: the format they will be stored in.
        search: how its scales are found.
    """
    given = [(weight, np.asarray(h, np.float32), spread) for weight, h, spread in weights]
    energies = [_energy(weight, h) for weight, h, _ in given]

    def loss(factors: Vector) -> float:
        total = 0.0
        for (weight, h, spread), energy in zip(given, energies, strict=True):
            by = spread(factors).astype(np.float32)
            stored = fmt.decode(nearest(weight * by, fmt, search=search)) / by
            total += _energy(weight - stored, h) / (energy or 1.0)
        return total / max(len(given), 1)

    return loss


def best_of(candidates: Iterable[tuple[float, Vector]], loss: Loss) -> tuple[float, Vector] | None:
    """The candidate of the lowest loss, or None when it is hardly lower than that of no factors.

    Args:
        candidates: a parameter and the factors it gives.
        loss: to be made small.
    """
    chosen: tuple[float, Vector] | None = None
    least = np.inf
    for parameter, factors in candidates:
        here = loss(factors)
        if here < least:
            chosen, least = (parameter, factors), here
    if chosen is None:
        return None
    return chosen if least < loss(np.ones_like(chosen[1])) * (1.0 - _BETTER) else None


def some_rows(weight: Array) -> Array:
    """Some of the outputs of a large weight, evenly spaced."""
    return weight[:: -(-len(weight) // _OUTPUTS)] if len(weight) > _OUTPUTS else weight


def _squares(rows: Array) -> Vector:
    return np.asarray(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))


def _energy(weight: Array, second_moment: Array) -> float:
    """tr(W H Wᵀ)."""
    return float(np.einsum("ij,ij->", weight @ second_moment, weight, dtype=np.float64))
