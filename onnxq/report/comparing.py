"""What the template of several artifacts shows: a table of what differs, and charts laid over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from onnxq.passes.recipe import recipe_from
from onnxq.passes.recipe_text import row_text
from onnxq.report import charts
from onnxq.report.charts import Series
from onnxq.report.facts import Facts
from onnxq.report.measures import Measures
from onnxq.report.wording import figure, format_mix, loss_text, megabytes

__all__ = ["comparison_view"]

Found = Sequence[tuple[Facts, Measures | None]]


def comparison_view(found: Found) -> dict[str, Any]:
    """Everything the template needs.

    Args:
        found: two artifacts or more, with what was measured of each.
    """
    names = [facts.name for facts, _ in found]
    return {
        "names": names,
        "said": _said(found),
        "rows": _rows(found),
        "scatter": _scatter(found),
        "layers": _layers(found),
        "recipes": _recipes(found),
        "left": _left(found),
        "examples": _examples(found),
        "measured": next((measures for _, measures in found if measures is not None), None),
        "keys": [f"s{number % 6}" for number in range(len(names))],
    }


def _said(found: Found) -> str:
    smallest = min(found, key=lambda pair: pair[0].nbytes)[0]
    said = f"The smallest is {smallest.name} with {megabytes(smallest.nbytes)}."
    losses = [(float(m.loss["whole"]), f.name) for f, m in found if m is not None and m.loss]
    kinds = {str(m.loss["unit"]) for _, m in found if m is not None and m.loss}
    if len(losses) == len(found) and len(kinds) == 1:
        said += f" The closest to the original is {min(losses)[1]}."
    times = [
        (float(m.bench[1]["latency_ms"]), f.name)
        for f, m in found
        if m is not None and len(m.bench) == 2
    ]
    if len(times) == len(found):
        said += f" The fastest here is {min(times)[1]}."
    return said


def _rows(found: Found) -> list[dict[str, Any]]:
    """A row for each thing to compare; ``differs`` marks those that are not the same."""
    columns: dict[str, list[str]] = {}

    def put(label: str, values: Sequence[str]) -> None:
        if any(value not in ("–", "") for value in values):
            columns[label] = list(values)

    facts = [one for one, _ in found]
    put("size", [megabytes(one.nbytes) for one in facts])
    put("bits per weight", [figure(one.bits) for one in facts])
    put("sites quantized", [str(len(one.sites)) for one in facts])
    put("left in float", [str(len(one.left)) for one in facts])
    put("formats", [format_mix(one) for one in facts])
    put("recipe", ["–" if one.report is None else one.report["recipe"]["name"] for one in facts])
    put("made from", [_source(one) for one in facts])
    for label, values in _measured_rows(found).items():
        put(label, values)
    return [
        {"label": label, "values": values, "differs": len(set(values)) > 1}
        for label, values in columns.items()
    ]


def _source(facts: Facts) -> str:
    hashes = ((facts.report or {}).get("source") or {}).get("sha256") or {}
    return ", ".join(f"{name} {value[:12]}…" for name, value in hashes.items()) or "–"


def _measured_rows(found: Found) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for _, measures in found:
        loss = None if measures is None else measures.loss
        shown = "–" if not loss else loss_text(str(loss["name"]), float(loss["whole"]))
        rows.setdefault("signal to noise, or loss", []).append(shown)
        outputs = [] if measures is None else measures.outputs
        top1 = next((row["top1"] for row in outputs if row.get("top1") is not None), None)
        same = top1 if loss and loss["name"] == "kl" else None
        rows.setdefault("same likeliest choice", []).append("–" if same is None else f"{same:.1%}")
        bench = {} if measures is None or len(measures.bench) < 2 else measures.bench[1]
        for key, label in (
            ("latency_ms", "a run, ms"),
            ("ratio", "of the original's time"),
            ("peak_rss_mb", "peak memory, MB"),
            ("prefill_tokens_s", "prefill, tokens/s"),
            ("decode_tokens_s", "decode, tokens/s"),
        ):
            rows.setdefault(label, []).append(figure(bench.get(key)))
    return rows


def _scatter(found: Found) -> Any:
    known = [(facts, m.loss) for facts, m in found if m is not None and m.loss]
    if len(known) < 2 or len({str(loss["unit"]) for _, loss in known}) > 1:
        return None
    series: list[Series] = []
    for facts, loss in known:
        size, value = facts.nbytes / 1e6, float(loss["whole"])
        if math.isfinite(value):
            told = f"{facts.name}: {figure(size)} MB, loss {figure(value)}"
            series.append((facts.name, [(size, value, told)]))
    chart = charts.scatter(series, "loss (logarithmic)", "MB")
    return {"chart": chart, "unit": known[0][1]["unit"]}


def _layers(found: Found) -> Any:
    """Layers laid over when measured, else errors of the stored weights."""
    order: dict[str, int] = {}
    figures: list[tuple[str, dict[str, float]]] = []
    is_measured = all(measures is not None and measures.layers for _, measures in found)
    for facts, measures in found:
        if is_measured and measures is not None:
            rows = {
                str(row["name"]): float(row["sqnr_db"])
                for row in measures.layers
                if isinstance(row["sqnr_db"], (int, float)) and math.isfinite(row["sqnr_db"])
            }
        else:
            rows = {s["site"]: s["error"] for s in facts.sites if s.get("error") is not None}
        for name in rows:
            order.setdefault(name, len(order))
        figures.append((facts.name, rows))
    if not order:
        return None
    series: list[Series] = [
        (
            name,
            [
                (float(order[site]), value, f"{name}, {site}: {figure(value)}")
                for site, value in sorted(rows.items(), key=lambda item: order[item[0]])
            ],
        )
        for name, rows in figures
    ]
    label = "SQNR in dB" if is_measured else "relative error of the weight"
    chart = charts.lines(series, label, "layers in graph order")
    return {"chart": chart, "is_measured": is_measured}


def _recipes(found: Found) -> list[dict[str, Any]]:
    """The rows of every recipe, pass by pass in the order they first come up."""
    tables = [
        []
        if facts.report is None
        else [(step.key(), row_text(step)) for step in recipe_from(facts.report["recipe"]).steps]
        for facts, _ in found
    ]
    keys = dict.fromkeys(key for table in tables for key, _ in table)
    rows = []
    for key in keys:
        cells = ["\n".join(text for use, text in table if use == key) for table in tables]
        rows.append({"use": key, "cells": cells, "differs": len(set(cells)) > 1})
    return rows


def _left(found: Found) -> list[dict[str, Any]]:
    """Sites that some artifacts left in float and others did not."""
    left = [{row["site"]: row["reason"] for row in facts.left} for facts, _ in found]
    names = dict.fromkeys(name for rows in left for name in rows)
    uneven = [name for name in names if not all(name in rows for rows in left)]
    return [
        {"site": name, "cells": [rows.get(name, "quantized") for rows in left]} for name in uneven
    ]


def _examples(found: Found) -> list[dict[str, Any]]:
    known = [list(measures.examples) for _, measures in found if measures is not None]
    if len(known) < len(found) or not all(known):
        return []
    inputs = [row["input"] for row in known[0]]
    if any([row["input"] for row in rows] != inputs for rows in known):
        return []
    return [
        {
            "input": row["input"],
            "original": row["original"],
            "cells": [(rows[number]["quantized"], rows[number]["same"]) for rows in known],
        }
        for number, row in enumerate(known[0])
    ]
