"""Outliers of every site, before and after a pass that moves them.

The runner measures around each pass that says ``moves_outliers``: the activation that a site reads,
on a few samples, and its weight as ``[outputs, inputs]``. The pass itself does nothing for it. What
cannot be measured is a clause in the report and never stops a recipe.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.calibration import unreachable_sites
from onnxq.calibration.readings import ConvReading, reading_of
from onnxq.calibration.values import Visitor, visit_values
from onnxq.errors import OnnxqError
from onnxq.evaluate.outliers import QSUR_COLUMNS, OutlierMeter, Outliers
from onnxq.graph import find_sites, read_weight
from onnxq.graph.orientation import to_rows
from onnxq.graph.sites import Site

__all__ = [
    "ActivationMeters",
    "OutlierShift",
    "OutlierWatch",
    "SiteOutliers",
    "measure_outliers",
    "pair_sites",
]

_FIGURES = ("max_to_rms", "row_max_to_rms", "kurtosis", "qsur")

_WEIGHT_ENTRIES = 1 << 18
"""Of larger weights evenly spaced rows are measured: figures of rows are known well from these."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteOutliers:
    """The figures of one site.

    Attributes:
        site: name of the site.
        weight_name: name of its stored weight.
        activation: of the values it reads, tokens (or pixels) by channels; None when not measured.
        weight: of its weight, outputs by inputs; None when not measured.
        reason: why the activation was not measured, as a clause.
        peaks: float64 [channels], the greatest magnitude of each channel of the activation.
        roots: float64 [channels], the root mean square of each channel of the activation.
    """

    site: str
    weight_name: str | None = None
    activation: Outliers | None = None
    weight: Outliers | None = None
    reason: str | None = None
    peaks: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    roots: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutlierShift:
    """What a pass did to the outliers.

    Attributes:
        pairs: each site that is there before and after, as measured before and after.
    """

    pairs: tuple[tuple[SiteOutliers, SiteOutliers], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the sites, and the middle and the worst of each figure over them."""
        sites = []
        for old, new in self.pairs:
            row: dict[str, Any] = {"site": new.site}
            for what in ("activation", "weight"):
                sides = [getattr(side, what) for side in (old, new)]
                if all(side is not None for side in sides):
                    row[what] = dict(
                        zip(("before", "after"), (s.to_dict() for s in sides), strict=True)
                    )
            sites.append(row)
        return {"summary": self.summary(), "sites": sites}

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """By ``activation``/``weight`` and figure: ``median`` and ``worst``, before and after.

        The worst of QSUR is the least, of the others the greatest. A figure that no site has is
        left out.
        """
        found: dict[str, dict[str, dict[str, float]]] = {}
        for what, figure in itertools.product(("activation", "weight"), _FIGURES):
            sides = [
                (_figure(old, what, figure), _figure(new, what, figure)) for old, new in self.pairs
            ]
            known = [(old, new) for old, new in sides if old is not None and new is not None]
            worst = min if figure == "qsur" else max
            for at, side in enumerate(("before", "after") if known else ()):
                values = [pair[at] for pair in known]
                row = found.setdefault(what, {}).setdefault(figure, {})
                row[f"median_{side}"] = float(f"{statistics.median(values):.4g}")
                row[f"worst_{side}"] = float(f"{worst(values):.4g}")
        return found


def _figure(site: SiteOutliers, what: str, figure: str) -> float | None:
    outliers: Outliers | None = getattr(site, what)
    return None if outliers is None else getattr(outliers, figure)


class OutlierWatch:
    """Measures around passes that move outliers; what one left is what the next one finds.

    QSUR is measured up to 1024 channels: on the few samples of a check there are no more tokens.

    Args:
        samples: a few model inputs to measure activations on; empty measures the weights alone.
    """

    def __init__(self, samples: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._samples = samples
        self._now: dict[str, SiteOutliers] | str | None = None

    def before(self, model: ir.Model) -> None:
        """Measure the model that a pass is about to change, unless it is known from before."""
        if self._now is None:
            self._now = self._measured(model)

    def after(self, model: ir.Model) -> OutlierShift | str:
        """What changed since `before`, or a clause that says why it is not known."""
        old, new = self._now, self._measured(model)
        self._now = new
        if isinstance(old, str) or isinstance(new, str):
            return old if isinstance(old, str) else str(new)
        return OutlierShift(pairs=tuple(pair_sites(old or {}, new)))

    def forget(self) -> None:
        """The model was changed by something else: measure afresh next time."""
        self._now = None

    def _measured(self, model: ir.Model) -> dict[str, SiteOutliers] | str:
        try:
            return measure_outliers(model, self._samples, qsur_columns=1024)
        except OnnxqError as error:
            return f"outliers were not measured: {error}"


def pair_sites(
    before: Mapping[str, SiteOutliers], after: Mapping[str, SiteOutliers]
) -> Iterable[tuple[SiteOutliers, SiteOutliers]]:
    """Sites of the same name, else of the same weight where only one site has it."""
    by_weight: dict[str | None, list[SiteOutliers]] = {}
    for site in before.values():
        by_weight.setdefault(site.weight_name, []).append(site)
    for name, new in after.items():
        same = by_weight.get(new.weight_name, [])
        if name in before:
            yield before[name], new
        elif len(same) == 1 and same[0].site not in after:
            yield same[0], new


def measure_outliers(
    model: ir.Model,
    samples: Sequence[Mapping[str, np.ndarray]],
    *,
    sites: Iterable[Site] | None = None,
    qsur_columns: int = QSUR_COLUMNS,
    threads: int | None = None,
) -> dict[str, SiteOutliers]:
    """The outliers of each site's activation and weight, by site name.

    Args:
        model: left as it is.
        samples: model inputs by name; empty measures the weights alone.
        sites: sites of ``model``; all that multiply by a weight when None.
        qsur_columns: channels up to which QSUR is measured, at most `QSUR_COLUMNS`.
        threads: threads of the runtime; None leaves the choice to it.

    Raises:
        OnnxqError: the samples do not fit, or the runtime does not run the model.
    """
    given = find_sites(model) if sites is None else sites
    chosen = [site for site in given if site.weight is not None and not site.is_embedding]
    reasons = unreachable_sites(model, chosen)
    axes = {
        site.name: (site.input.name or "", channel_axis(site))
        for site in chosen
        if site.name not in reasons and site.input is not None
    }
    meters = ActivationMeters(axes.values(), qsur_columns)
    if samples:
        visit_values(model, meters.names, samples, meters, threads=threads)
    found = {}
    for site in chosen:
        measured = meters.as_site(site.name, axes.get(site.name, ("", 0)))
        reason = reasons.get(site.name, "there are no data" if not samples else measured.reason)
        found[site.name] = dataclasses.replace(
            measured,
            weight_name=None if site.weight is None else site.weight.name,
            weight=_of_weight(site),
            reason=reason,
        )
    return found


def channel_axis(site: Site) -> int:
    """The axis of the channels in what the site reads: the one it sums over."""
    reading = reading_of(site)
    return 1 if isinstance(reading, (ConvReading, str)) else reading.axis


class ActivationMeters(Visitor):
    """A meter for each value and channel axis.

    Attributes:
        names: the values to visit.
        results: what was found by (value, axis), when it is finished; a clause when nothing can be.
        peaks: the greatest magnitude of each channel, by (value, axis).
        roots: the root mean square of each channel, by (value, axis).
    """

    def __init__(self, wanted: Iterable[tuple[str, int]], qsur_columns: int) -> None:
        """Watch each (name of a value, axis of its channels); QSUR up to so many channels."""
        self._qsur_columns = qsur_columns
        self._axes: dict[str, list[int]] = {}
        for name, axis in dict.fromkeys(wanted):
            self._axes.setdefault(name, []).append(axis)
        self._meters: dict[tuple[str, int], OutlierMeter] = {}
        self.names = list(self._axes)
        self.results: dict[tuple[str, int], Outliers | str] = {}
        self.peaks: dict[tuple[str, int], np.ndarray] = {}
        self.roots: dict[tuple[str, int], np.ndarray] = {}

    def visit(self, name: str, array: np.ndarray) -> None:
        """Add the values of one sample."""
        for axis in self._axes[name]:
            moved = np.moveaxis(array, axis if array.ndim > 1 else -1, -1)
            key = name, axis
            if key not in self._meters:
                columns = moved.shape[-1]
                self._meters[key] = OutlierMeter(columns, wants_qsur=columns <= self._qsur_columns)
            self._meters[key].add(moved.reshape(-1, moved.shape[-1]))

    def finish(self, name: str) -> None:
        """Keep the figures and drop what they came from."""
        for axis in self._axes[name]:
            meter = self._meters.pop((name, axis), None)
            if meter is not None:
                self.results[name, axis] = meter.result()
                self.peaks[name, axis], self.roots[name, axis] = meter.peaks, meter.roots

    def as_site(self, site: str, key: tuple[str, int]) -> SiteOutliers:
        """What was found of one (value, axis), under the name of what reads it."""
        found = self.results.get(key)
        return SiteOutliers(
            site=site,
            activation=found if isinstance(found, Outliers) else None,
            reason=found if isinstance(found, str) else None,
            peaks=self.peaks.get(key),
            roots=self.roots.get(key),
        )

    def held_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        """The second moments."""
        sizes = [shape[axis] for axis in self._axes[name] if -len(shape) <= axis < len(shape)]
        return sum(8 * size * size for size in sizes if size <= self._qsur_columns)


def _of_weight(site: Site) -> Outliers | None:
    """The figures of a float weight; None for what has none or cannot be read as a matrix."""
    if site.weight is None or site.refusal is not None or site.already is not None:
        return None
    rows = to_rows(site, read_weight(site.weight))
    rows = rows[:: max(1, -(-rows.size // _WEIGHT_ENTRIES))]
    meter = OutlierMeter(rows.shape[-1], wants_qsur=False)
    meter.add(rows)
    found = meter.result()
    return None if isinstance(found, str) else found
