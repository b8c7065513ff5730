"""Size against loss: this model among what else there could be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from onnxq.report import charts
from onnxq.report.charts import Series
from onnxq.report.facts import Facts
from onnxq.report.measures import Measures
from onnxq.report.wording import figure

__all__ = ["tradeoff"]

_FLOAT_BITS = 32
_LEAST = 0.01
"""The part of the loss down to which effects are added up: below it the sum means nothing."""


def tradeoff(facts: Facts, measures: Measures | None) -> dict[str, Any] | None:
    """The chart and what it shows; None when no loss is known.

    With the account of a budget: its front, uniform formats, and this model. Else from measured
    effects: this model and what it would be with more and more sites in float, the effects added
    up.
    """
    if facts.budget is not None and (facts.budget.get("front") or facts.budget.get("uniform")):
        return _of_budget(facts.name, facts.budget)
    if measures is None or measures.loss is None or not measures.effects:
        return None
    return _of_effects(facts, measures)


def _of_budget(name: str, budget: Mapping[str, Any]) -> dict[str, Any]:
    reached = budget["reached"]
    loss = reached.get("measured_loss")
    loss = reached["predicted_loss"] if loss is None else loss
    series: list[Series] = [
        ("front", [_mark(row["bytes"], row["loss"], "best mix") for row in budget["front"]]),
        *(
            (row["format"], [_mark(row["bytes"], row["loss"], row["format"])])
            for row in budget["uniform"]
        ),
        (f"this model ({name})", [_mark(reached["bytes"], loss, name)]),
    ]
    chart = charts.scatter(series, "loss (logarithmic)", "MB", joined=(0,))
    said = (
        "The dashed line is the best mix of formats for every size, as predicted; a point with a "
        f"format's name has that format everywhere. Loss: {budget['loss']}."
    )
    return {"chart": chart, "said": said}


def _of_effects(facts: Facts, measures: Measures) -> dict[str, Any]:
    loss = dict(measures.loss or {})
    steps = _restoring(facts, measures.effects)
    size, left = float(facts.nbytes), float(loss["whole"])
    marks = [_mark(size, left, "this model")]
    for name, more, effect in steps:
        size, left = size + more, left - effect
        if left < _LEAST * float(loss["whole"]):
            break
        marks.append(_mark(size, left, f"with {name} in float"))
    series: list[Series] = [
        (f"this model ({facts.name})", [_mark(float(facts.nbytes), float(loss["whole"]), "")]),
    ]
    if len(marks) > 1:
        series.insert(0, ("estimated", marks))
    if facts.original_bytes:
        series.append(("original", [_mark(facts.original_bytes, 0.0, "original: no loss")]))
    joined = (0,) if len(marks) > 1 else ()
    chart = charts.scatter(series, "loss (logarithmic)", "MB", joined=joined)
    estimate = (
        "The dashed line is an estimate: sites restored to float one after the other, the one that "
        "helps most for its bytes first, their single effects added up. "
    )
    said = f"{estimate * bool(joined)}The original, at the bottom, loses nothing."
    said += f" Loss: {loss['unit']}."
    return {"chart": chart, "said": said}


def _restoring(facts: Facts, effects: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Name, bytes more and effect of each site, what helps most for a byte first."""
    rows = []
    for site in facts.sites:
        effect, bits, nbytes = effects.get(site["site"]), site.get("bits"), site.get("nbytes")
        if effect is None or effect <= 0 or not bits or not nbytes or not math.isfinite(effect):
            continue
        rows.append((str(site["site"]), nbytes * (_FLOAT_BITS / bits - 1), effect))
    return sorted(rows, key=lambda row: -row[2] / row[1])


def _mark(nbytes: float, loss: float, told: str) -> tuple[float, float, str]:
    size = nbytes / 1e6
    return size, loss, f"{told}: {figure(size)} MB, loss {figure(float(loss))}"
