"""What one calibrated step for all tokens costs a product, token by token.

For a product x W and its rounded activation x̂, over rows x of the calibration data::

    noise  =  mean over rows of ‖(x̂ − x) W‖² / ‖x W‖²

A ratio of sums would hide what matters: the input of the last layer of an MLP may hold one token a
hundred times as loud as the others. One step for all of them keeps that token and takes most of
the bits of the others, which the sums, being those of the loud token, do not show (34 dB where the
mean over tokens is 3 dB). A step for each token, found as the model runs, has no such trouble, and
its noise is measured beside: symmetric, with as many bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibration.readings import LinearReading, reading_of
from onnxq.calibration.values import Visitor, visit_values
from onnxq.graph.orientation import to_rows
from onnxq.graph.sites import Site
from onnxq.graph.weights import read_weight
from onnxq.passes.activation_grid import Grid
from onnxq.passes.base import Samples
from onnxq.passes.qdq_trial import decibels
from onnxq.passes.site_noise import spread_over
from onnxq.passes.smoothing_search import some_rows

__all__ = ["TokenNoise", "loud_reasons", "token_noise"]

_SAMPLES = 8
"""Calibration samples that are looked at, spread evenly over all there are."""
_ROWS = 256
"""Rows of each that are looked at, evenly spaced, with the first, which is often the loud one."""

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenNoise:
    """Noise power over signal power of a product, mean over tokens.

    Attributes:
        static: with the one step of its grid.
        token: with a step for each token.
    """

    static: float
    token: float


def token_noise(
    model: ir.Model, grids: Mapping[Site, Grid], samples: Samples
) -> dict[Site, TokenNoise]:
    """The noise of each site whose rows are tokens: MatMul and Gemm; others are left out.

    Args:
        model: left as it is.
        grids: of the activations, by site of the main graph.
        samples: model inputs by name.

    Raises:
        CalibrationError: the samples do not fit the model.
        UnsupportedGraph: the runtime does not load the model.
    """
    meters: dict[str, list[_Meter]] = {}
    for site, grid in grids.items():
        reading = reading_of(site)
        if isinstance(reading, LinearReading) and site.input is not None and not site.path:
            meters.setdefault(site.input.name or "", []).append(_Meter(site, reading, grid))
    if meters:
        visit_values(model, list(meters), spread_over(samples, _SAMPLES), _Meters(meters))
    every = [meter for there in meters.values() for meter in there]
    return {meter.site: meter.noise() for meter in every if meter.count}


def loud_reasons(noise: Mapping[Site, TokenNoise], least_db: float) -> dict[str, str]:
    """The sentence for each site whose products would keep less than asked for, by its name.

    Args:
        noise: by site.
        least_db: signal-to-noise ratio that products are to keep, mean over tokens.
    """
    allowed = 10.0 ** (-least_db / 10.0)
    return {
        site.name: f"one step for all tokens would leave {decibels(found.static)} dB of its "
        f"product, mean over tokens, a step for each {decibels(found.token)} dB, and "
        f"{least_db:g} dB are to be kept"
        for site, found in noise.items()
        if not found.static <= allowed
    }


class _Meter:
    """Adds up the noise of one site."""

    def __init__(self, site: Site, reading: LinearReading, grid: Grid) -> None:
        self.site = site
        self.count = 0
        self._reading = reading
        self._grid = grid
        self._sums = np.zeros(2)
        self._weight: Array | None = None

    def add(self, activation: Array) -> None:
        """Take in an activation of one sample."""
        for piece in self._reading.pieces(activation):
            rows = piece[0]
            self._add(np.asarray(rows[:: -(-len(rows) // _ROWS) or 1], np.float32))

    def noise(self) -> TokenNoise:
        """The mean so far."""
        static, token = self._sums / max(self.count, 1)
        return TokenNoise(static=float(static), token=float(token))

    def _add(self, rows: Array) -> None:
        if self._weight is None:
            assert self.site.weight is not None  # a site with a grid is one that can be rounded
            self._weight = some_rows(to_rows(self.site, read_weight(self.site.weight)))
            self._weight = np.ascontiguousarray(self._weight.T, np.float32)
        energy = _squares(rows @ self._weight)
        heard = energy > 0
        for index, rounded in enumerate((self._grid.rounded(rows), self._by_token(rows))):
            error = _squares((rounded - rows) @ self._weight)
            self._sums[index] += float(np.sum(error[heard] / energy[heard]))
        self.count += int(np.count_nonzero(heard))

    def _by_token(self, rows: Array) -> Array:
        limit = np.float32((self._grid.highest - self._grid.lowest) // 2)
        step = np.abs(rows).max(axis=1, keepdims=True, initial=0) / limit
        step = np.maximum(step, np.finfo(np.float32).tiny)
        return np.asarray(np.rint(rows / step) * step, np.float32)


class _Meters(Visitor):
    def __init__(self, meters: Mapping[str, Sequence[_Meter]]) -> None:
        self._meters = meters

    def visit(self, name: str, array: np.ndarray) -> None:
        for meter in self._meters[name] if array.size else ():
            meter.add(array)


def _squares(rows: Array) -> npt.NDArray[np.float64]:
    return np.asarray(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
