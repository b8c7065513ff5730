"""The verb ``onnxq outliers``: how far activations and weights are from what a grid serves well.

What the figures are is told in `onnxq.evaluate.outliers`; here they become rows of a table and a
picture, of one model or of one before and after, and rows for the passes of a recipe.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq.errors import UsageError, nearest_word

if TYPE_CHECKING:
    from onnxq.passes.site_outliers import SiteOutliers

__all__ = ["moved_outliers", "outlier_rows"]

_COLUMNS = {
    "max/rms of a token": ("activation", "row_max_to_rms"),
    "of a tensor": ("activation", "max_to_rms"),
    "kurtosis": ("activation", "kurtosis"),
    "QSUR bits": ("activation", "qsur"),
    "weight max/rms": ("weight", "row_max_to_rms"),
}
"""What is measured, by the heading it is shown under."""

Pair = tuple["SiteOutliers", "SiteOutliers | None"]


def outlier_rows(
    model: Any,
    after: Any = None,
    *,
    data: Any,
    site: str | None = None,
    plot: str | Path | None = None,
    tokenizer: str | Path | None = None,
    window: int = 512,
    limit: int = 4,
) -> list[dict[str, Any]]:
    """Measure the outliers of every site of a model, or of one model before and after a change.

    Args:
        model: anything `onnxq.load` takes.
        after: the changed model; sites are matched by name, else by the name of their weight.
        data: calibration inputs as in `onnxq.quantize`.
        site: name of one site to measure; all of them when None.
        plot: file for a picture of the activation by channel, .svg or .html: of ``site``, else of
            the site whose tokens have the greatest max-to-RMS.
        tokenizer: as in `onnxq.quantize`.
        window: of a text, tokens in a sample.
        limit: read at most this many samples.

    Returns:
        One row for each site, the one with the greatest max-to-RMS of a token first; figures of two
        models are texts of the form ``before → after``. ``not measured`` says why an activation has
        no figures.

    Raises:
        UsageError: there is no such site.
        OnnxqError: the data do not fit a model.
    """
    pairs = _measured(model, after, data, site, tokenizer, window, limit)
    pairs.sort(key=lambda pair: -_tallness(pair[0]))
    if plot is not None:
        _draw(pairs, Path(plot))
    return [_row(*pair) for pair in pairs]


def moved_outliers(steps: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each pass that moves outliers: every figure before and after, middle and worst.

    Args:
        steps: of the report of an artifact.
    """
    for step in steps:
        found = step.get("outliers")
        if found is None or not found["sites"]:
            continue
        row: dict[str, Any] = {"pass": step["use"], "sites": len(found["sites"])}
        for heading, (what, figure) in _COLUMNS.items():
            values = found["summary"].get(what, {}).get(figure)
            row[heading] = None if values is None else " → ".join(_spread(values))
        yield row


def _spread(values: Mapping[str, float]) -> Iterator[str]:
    for side in ("before", "after"):
        yield f"{values[f'median_{side}']:.3g} ({values[f'worst_{side}']:.3g})"


def _measured(
    model: Any,
    after: Any,
    data: Any,
    site: str | None,
    tokenizer: str | Path | None,
    window: int,
    limit: int,
) -> list[Pair]:
    from onnxq.calibration import open_data, tokenizer_beside
    from onnxq.graph import find_sites, load
    from onnxq.passes.site_outliers import measure_outliers, pair_sites

    before = load(model)
    tokenizer = tokenizer or tokenizer_beside(model)
    opened = open_data(data, before, tokenizer=tokenizer, length=window, limit=limit)
    samples = list(itertools.islice(iter(opened), limit))
    sites = find_sites(before)
    if site is not None:
        names = [one.name for one in sites]
        if site not in names:
            near = nearest_word(site, names)
            hint = f" Did you mean {near!r}?" if near else ""
            raise UsageError(
                f"There is no site {site!r}.{hint} `onnxq inspect --sites` lists them."
            )
        sites = [one for one in sites if one.name == site]
    first = measure_outliers(before, samples, sites=sites)
    if after is None:
        return [(one, None) for one in first.values()]
    return list(pair_sites(first, measure_outliers(load(after), samples)))


def _tallness(site: SiteOutliers) -> float:
    return 0.0 if site.activation is None else site.activation.row_max_to_rms


def _row(before: SiteOutliers, after: SiteOutliers | None) -> dict[str, Any]:
    row: dict[str, Any] = {"site": before.site}
    for heading, (what, figure) in _COLUMNS.items():
        old, new = (getattr(getattr(one, what, None), figure, None) for one in (before, after))
        if after is None or old is None or new is None:
            row[heading] = old if after is None else None
        else:
            row[heading] = f"{old:.3g} → {new:.3g}"
    reason = before.reason or (after.reason if after is not None else None)
    return {**row, "not measured": reason} if reason else row


def _draw(pairs: Sequence[Pair], path: Path) -> None:
    """The first pair that has an activation on all sides."""
    from onnxq.evaluate.channel_picture import write_picture
    from onnxq.passes.outlier_picture import activation_panels

    for pair in pairs:
        sides = [one for one in pair if one is not None]
        panels = activation_panels(sides, ("before", "after") if len(sides) == 2 else ("",))
        if panels is not None:
            write_picture(path, f"What {pair[0].site} reads", panels)
            return
    raise UsageError(
        "There is no activation to draw: no site reads a value that depends on the data. "
        "`onnxq outliers` without --plot tells why, site by site."
    )
