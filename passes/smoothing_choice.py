"""The factors of one migration, chosen as `smooth_activations` is configured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibration.channel_profile import ChannelProfile
from onnxq.calibration.course import unreachable_sites
from onnxq.calibration.readings import Reading, reading_of
from onnxq.calibration.samples import Samples
from onnxq.calibration.site_statistics import walk_sites
from onnxq.formats import IntFormat
from onnxq.graph.orientation import to_rows
from onnxq.graph.sites import Site
from onnxq.graph.weights import read_weight
from onnxq.passes.migration import Migration
from onnxq.passes.smoothing_factors import (
    awq_factors,
    column_norms,
    column_peaks,
    gain_factors,
    percentile_factors,
    smoothquant_factors,
)
from onnxq.passes.smoothing_search import Reader, Simulation, best_of, some_rows, weight_loss
from onnxq.passes.weight_layout import weight_of
from onnxq.solvers.nearest import Search
from onnxq.solvers.statistics import Statistics

__all__ = ["Choice", "Objective", "Smoothing", "choices_by_moments", "input_name", "middles_of",
           "searched_reading"]  # fmt: skip

Objective = Literal["smoothquant", "gain", "percentile", "awq"]
Vector = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

_BALANCED = 1e-3
"""Factors all within this of 1 are what float rounding leaves of factors that were applied."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Factors, or why there are none.

    Attributes:
        factors: float64 [count]; None when the activation stays as it is.
        text: the parameter chosen, or the reason, as a clause.
    """

    factors: Vector | None
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Smoothing:
    """How factors are chosen; the fields are those of `SmoothActivations`."""

    objective: Objective
    alpha: float | None
    percentile: float
    fmt: IntFormat
    activation_bits: int
    granularity: Literal["token", "tensor"]
    search: Search
    steps: int

    @property
    def searches_rows(self) -> bool:
        """Whether candidates are tried on rows of the activations."""
        return self.objective == "smoothquant" and self.alpha is None

    def choose(self, migration: Migration, profiles: Mapping[str, ChannelProfile]) -> Choice:
        """Factors from the profiles of what the readers read; not for a search by AWQ."""
        peaks = _pooled(migration, lambda site: profiles[input_name(site)].peak)
        if self.objective == "percentile":
            factors = percentile_factors(peaks, self.percentile)
            return _judged(factors, f"the {self.percentile:g}th percentile of the peaks")
        if self.objective == "gain":
            return _judged(_gain(migration, profiles), "the best gain")
        if self.objective == "awq":
            magnitudes = _magnitudes(migration, profiles)
            return _judged(awq_factors(magnitudes, self.alpha or 0.0), f"beta {self.alpha:g}")
        weights = _pooled(migration, column_peaks)
        if self.alpha is not None:
            factors = smoothquant_factors(peaks, weights, self.alpha)
            return _judged(factors, f"alpha {self.alpha:g}")
        reason = next((r for site in migration.readers if (r := _unsearchable(site))), None)
        if reason is not None:
            factors = smoothquant_factors(peaks, weights, 0.5)
            return _judged(factors, f"alpha 0.5 without a search: {reason}")
        simulation = Simulation(
            fmt=self.fmt,
            bits=self.activation_bits,
            granularity=self.granularity,
            search=self.search,
        )
        loss = simulation.loss([_reader(migration, s, profiles) for s in migration.readers])
        return self._searched(lambda a: smoothquant_factors(peaks, weights, a), loss, "alpha")

    def choose_by_moments(
        self,
        migration: Migration,
        moments: Mapping[Site, Array],
        profiles: Mapping[str, ChannelProfile],
    ) -> Choice:
        """AWQ's grid over β, given H = E[x xᵀ] of every reader."""
        magnitudes = _magnitudes(migration, profiles)
        given = [
            (some_rows(_rows_of(site)), moments[site], _columns(migration, site))
            for site in migration.readers
        ]
        loss = weight_loss(given, self.fmt, self.search)
        return self._searched(lambda beta: awq_factors(magnitudes, beta), loss, "beta")

    def _searched(
        self, family: Callable[[float], Vector], loss: Callable[[Vector], float], name: str
    ) -> Choice:
        grid = np.linspace(0.0, 1.0, self.steps + 1)
        found = best_of(((float(power), family(float(power))) for power in grid), loss)
        if found is None:
            return Choice(factors=None, text="no factors lower its output error")
        return _judged(found[1], f"{name} {found[0]:.2f}")


def choices_by_moments(
    model: ir.Model,
    migrations: Sequence[Migration],
    samples: Samples,
    how: Smoothing,
    profiles: Mapping[str, ChannelProfile],
) -> dict[Migration, Choice]:
    """Factors of every migration, as soon as the moments of all its readers are known."""
    of_site = {site: migration for migration in migrations for site in migration.readers}
    choices = {
        of_site[site]: Choice(factors=None, text=reason)
        for site in of_site
        if (reason := unreachable_sites(model, [site]).get(site.name) or _grouped(site))
    }
    moments: dict[Migration, dict[Site, Array]] = {}

    def visit(site: Site, statistics: tuple[Statistics, ...]) -> None:
        migration = of_site[site]
        known = moments.setdefault(migration, {})
        known[site] = statistics[0].hessian
        if len(known) == len(migration.readers):
            choices[migration] = how.choose_by_moments(migration, known, profiles)
            del moments[migration]

    wanted = [site for site, migration in of_site.items() if migration not in choices]
    walk_sites(model, samples, wanted, visit, flow="one_shot")
    return choices


def _grouped(site: Site) -> str | None:
    return f"{site.name!r} works on groups of channels" if site.groups > 1 else None


def input_name(site: Site) -> str:
    """The name of the activation a site reads."""
    return "" if site.input is None else site.input.name or ""


def middles_of(migration: Migration, profiles: Mapping[str, ChannelProfile]) -> Vector | None:
    """(max x_j + min x_j) / 2 of every channel, float64 [count]; None when all lie around 0."""
    lows, highs = [], []
    for site in migration.readers:
        profile = profiles[input_name(site)]
        lows.append(migration.pool(site, profile.low, np.minimum, np.inf))
        highs.append(migration.pool(site, profile.high, np.maximum, -np.inf))
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    middles = np.where(np.isfinite(low) & np.isfinite(high), (low + high) / 2, 0.0)
    is_centred = np.abs(middles).max() <= _BALANCED * np.abs(high - low).max()
    return None if is_centred else np.asarray(middles)


def searched_reading(site: Site) -> Reading | None:
    """How rows of its activation are kept for a search; None when it is not searched."""
    reading = reading_of(site)
    return None if isinstance(reading, str) or reading.groups > 1 else reading


def _unsearchable(site: Site) -> str | None:
    reading = reading_of(site)
    if isinstance(reading, str):
        return reading
    return f"{site.name!r} works on groups of channels" if reading.groups > 1 else None


def _reader(migration: Migration, site: Site, profiles: Mapping[str, ChannelProfile]) -> Reader:
    profile = profiles[input_name(site)]
    reading = searched_reading(site)
    if reading is None:
        raise ValueError(f"site {site.name!r} cannot be searched")
    return Reader(
        weight=some_rows(_rows_of(site)),
        rows=profile.rows[reading],
        spread=_columns(migration, site),
        peak=profile.peak.repeat(_taps(site)),
    )


def _rows_of(site: Site) -> Array:
    return to_rows(site, read_weight(weight_of(site)))


def _taps(site: Site) -> int:
    return math.prod(site.shape[2:]) if site.kind in ("Conv", "ConvTranspose") else 1


def _columns(migration: Migration, site: Site) -> Callable[[Vector], Vector]:
    """Brings factors to the columns of the canonical weight of a site."""
    taps = _taps(site)
    return lambda factors: migration.spread(site, factors).repeat(taps)


def _pooled(
    migration: Migration, measure: Callable[[Site], Vector], over: np.ufunc = np.maximum
) -> Vector:
    """A measure of all readers by factor: joined within a reader and between them."""
    parts: Iterable[Vector] = (migration.pool(s, measure(s), over) for s in migration.readers)
    return np.asarray(over.reduce(list(parts)))


def _gain(migration: Migration, profiles: Mapping[str, ChannelProfile]) -> Vector:
    squares = _pooled(migration, lambda site: profiles[input_name(site)].square, np.add)
    norms = _pooled(migration, lambda site: np.square(column_norms(site)), np.add)
    return gain_factors(squares, np.sqrt(norms))


def _magnitudes(migration: Migration, profiles: Mapping[str, ChannelProfile]) -> Vector:
    return _pooled(migration, lambda site: profiles[input_name(site)].magnitude)


def _judged(factors: Vector, text: str) -> Choice:
    if bool(np.all(np.abs(np.log(factors)) < _BALANCED)):
        return Choice(factors=None, text="its activation and its weights are balanced already")
    return Choice(
        factors=factors, text=f"{text}, factors {factors.min():.3g} to {factors.max():.3g}"
    )
