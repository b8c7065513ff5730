"""What the template of one artifact shows, section by section, as texts and charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxq.passes.left_reasons import reason_kind
from onnxq.report import charts
from onnxq.report.facts import Facts
from onnxq.report.fixes import site_fix
from onnxq.report.measures import Measures
from onnxq.report.tradeoff import tradeoff
from onnxq.report.wording import figure, loss_text, megabytes, verdict

__all__ = ["artifact_view", "suspects"]

_WORST = 10
_RANGES = 24
_MOVED = 0.01
"""Least shift, as a natural logarithm, of a figure that is said to have moved."""


def suspects(facts: Facts) -> list[str]:
    """The quantized sites, those that look worst first, from what the artifact says."""
    ranked = _ranked(facts, None)
    return [str(row["site"]) for row in ranked["rows"]]


def artifact_view(facts: Facts, measures: Measures | None) -> dict[str, Any]:
    """Everything the template needs, by section; an empty section is left out of the page."""
    ranked = _ranked(facts, measures)
    return {
        "name": facts.name,
        "came": _came(facts),
        "verdict": verdict(facts, measures),
        "tiles": _tiles(facts, measures),
        "asked": _asked(facts),
        "steps": facts.steps,
        "stages": (facts.report or {}).get("stages", []),
        "verification": _verification(facts),
        "worst": _worst(facts, ranked),
        "sites": _sites(facts, measures, ranked),
        "ranges": _ranges(facts),
        "tradeoff": tradeoff(facts, measures),
        "left": _left(facts),
        "examples": [] if measures is None else measures.examples,
        "bench": [] if measures is None else _bench(measures),
        "outputs": [] if measures is None else measures.outputs[:12],
        "measured": measures,
        "provenance": _provenance(facts),
        "recipe": facts.recipe,
        "figure": figure,
        "megabytes": megabytes,
    }


def _came(facts: Facts) -> str:
    """What it was made from and how, in a few words."""
    if facts.report is None:
        return ""
    source = (facts.report.get("source") or {}).get("path")
    made = f" from {Path(source).name}" if source else ""
    return f"Made{made} by the recipe {facts.report['recipe']['name']}."


def _tiles(facts: Facts, measures: Measures | None) -> list[tuple[str, str]]:
    bits = "–" if facts.bits is None else f"{facts.bits:.2f}"
    found = [(megabytes(facts.nbytes), "model files")]
    if facts.bits is not None and _all_counted(facts):
        found.append((bits, "bits per weight, embeddings and all overheads counted"))
    found.append((f"{len(facts.sites)}", f"sites quantized, {len(facts.left)} left in float"))
    if measures is not None and measures.loss is not None:
        loss = measures.loss
        name = str(loss["name"])
        what = "signal to noise of the output" if name == "noise" else f"loss: {loss['unit']}"
        found.append((loss_text(name, float(loss["whole"])), what))
    if measures is not None and len(measures.bench) == 2:
        first, second = measures.bench
        found.append(
            (
                f"{figure(second['latency_ms'])} ms",
                f"a run; the original takes {figure(first['latency_ms'])} ms",
            )
        )
    return found


def _all_counted(facts: Facts) -> bool:
    """Whether the sites of the file are those that the report names: operators hide theirs."""
    return all(site.get("nbytes") is None or site.get("bits") for site in facts.sites)


def _asked(facts: Facts) -> list[tuple[str, str]]:
    rows = []
    if facts.report is not None:
        recipe = facts.report["recipe"]
        rows.append(("recipe", f"{recipe['name']}: {recipe['summary']}"))
    if facts.budget is not None:
        asked = [f"{key} {figure(value)}" for key, value in facts.budget["asked"].items()]
        rows.append(("asked", ", ".join(asked)))
        reached = [
            f"{key.replace('_', ' ')} {figure(value)}"
            for key, value in facts.budget["reached"].items()
            if isinstance(value, (int, float))
        ]
        rows.append(("reached", ", ".join(reached)))
        rows.append(("loss", f"{facts.budget['loss']}; sensitivity by {facts.budget['measure']}"))
    return rows


def _verification(facts: Facts) -> str:
    if facts.report is None:
        return ""
    found = facts.report["verification"]
    outputs = found["outputs"]
    if isinstance(outputs, str):
        return f"Graph checked; outputs {outputs}."
    decibels = [row["sqnr_db"] for row in outputs["outputs"] if row["sqnr_db"] is not None]
    worst = f", the outputs are {figure(decibels[0])} dB from the original's" if decibels else ""
    return (
        f"When it was written, the file was checked, loaded and run on {outputs['samples']} "
        f"inputs{worst}."
    )


def _ranked(facts: Facts, measures: Measures | None) -> dict[str, Any]:
    """The sites by what is best known of them: measured, predicted, seen on data, of weights."""
    effects = dict(measures.effects) if measures is not None else {}
    known = {row["site"]: row for row in (facts.budget or {}).get("sites", ())}
    ways: list[tuple[str, str, dict[str, float]]] = [
        ("measured", "loss that goes when the site alone is restored to float", effects),
        ("predicted", "loss of the site, as the budget predicted it", _column(known, "loss")),
        ("seen", "relative error of what the site puts out, on data", _of(facts, "output_error")),
        ("weights", "relative error of the stored weight", _of(facts, "error")),
    ]
    how, what, values = next((way for way in ways if way[2]), ways[-1])
    order = sorted(values, key=lambda name: -_sortable(values[name]))
    rows = [{"site": name, "value": values[name]} for name in order]
    loss = None if measures is None else measures.loss
    unit = str(loss["unit"]) if how == "measured" and loss else ""
    return {"how": how, "what": what, "rows": rows, "options": known, "unit": unit}


def _column(rows: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, float]:
    return {name: row[key] for name, row in rows.items() if row.get(key) is not None}


def _of(facts: Facts, key: str) -> dict[str, float]:
    return {site["site"]: site[key] for site in facts.sites if site.get(key) is not None}


def _sortable(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _worst(facts: Facts, ranked: Mapping[str, Any]) -> dict[str, Any]:
    by_name = {site["site"]: site for site in facts.sites}
    rows = []
    positive = [row["value"] for row in ranked["rows"] if row["value"] > 0]
    total, top = sum(positive), max(positive, default=1.0)
    for row in ranked["rows"][:_WORST]:
        site = by_name.get(row["site"])
        options = (ranked["options"].get(row["site"]) or {}).get("options", ())
        fix = None
        if site is not None and facts.report is not None:
            fix = site_fix(facts.report, site, options)
        share = max(row["value"], 0.0) / top if math.isfinite(top) else 0.0
        rows.append(
            {
                **row,
                "format": None if site is None else site.get("format"),
                "fix": fix,
                "width": round(100 * share),
            }
        )
    guess = _ranked(facts, None)
    tops = sum(max(row["value"], 0.0) for row in ranked["rows"][:_WORST])
    return {
        "rows": rows,
        "how": ranked["how"],
        "what": ranked["what"],
        "unit": ranked["unit"],
        "share": tops / total if total and math.isfinite(total) else None,
        "of": len(ranked["rows"]),
        "tried_by": guess["what"],
        "is_guess": guess["how"] in ("seen", "weights"),
    }


def _sites(facts: Facts, measures: Measures | None, ranked: Mapping[str, Any]) -> dict[str, Any]:
    values = {row["site"]: row["value"] for row in ranked["rows"]}
    layers = {} if measures is None else {row["name"]: row["sqnr_db"] for row in measures.layers}
    rows = [
        {**site, "value": values.get(site["site"]), "sqnr_db": layers.get(site["site"])}
        for site in facts.sites
    ]
    drawn = [
        (
            max(float(row["value"]), 0.0),
            charts.bits_class(row.get("bits")),
            f"{row['site']}: {row.get('format')}, {figure(row['value'])}",
        )
        for row in rows
        if row["value"] is not None and math.isfinite(row["value"])
    ]
    chart = charts.bars(drawn, ranked["how"] + " loss", "sites in graph order") if drawn else None
    if drawn and ranked["how"] in ("seen", "weights"):
        chart = charts.bars(drawn, "relative error", "sites in graph order")
    seen = [float(row["sqnr_db"]) for row in _finite(layers)]
    line = None
    if len(seen) > 1:
        marks = [
            (float(n), float(row["sqnr_db"]), f"{row['site']}: {figure(row['sqnr_db'])} dB")
            for n, row in enumerate(_finite(layers))
        ]
        line = charts.lines([("", marks)], "SQNR in dB", "layers in graph order", top=max(seen))
    return {"rows": rows, "chart": chart, "line": line, "what": ranked["what"]}


def _finite(layers: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"site": name, "sqnr_db": value}
        for name, value in layers.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    ]


def _ranges(facts: Facts) -> dict[str, Any] | None:
    if not facts.ranges:
        return None
    ordered = sorted(facts.ranges, key=_shift, reverse=True)
    moved = [row for row in ordered if _shift(row) > _MOVED]
    rows = (moved or ordered)[:_RANGES]
    passes = list(dict.fromkeys(use for row in facts.ranges for use in row["by"]))
    chart = charts.dumbbells(
        [(row["site"], row["before"], row["after"]) for row in rows],
        "greatest magnitude of a token over its root mean square",
    )
    return {
        "chart": chart,
        "passes": passes,
        "shown": len(rows),
        "moved": len(moved),
        "of": len(facts.ranges),
    }


def _shift(row: Mapping[str, Any]) -> float:
    """How far a figure moved, as a ratio, up or down alike."""
    return abs(math.log(row["after"] / row["before"]))


def _left(facts: Facts) -> list[dict[str, Any]]:
    found: dict[str, list[str]] = {}
    for row in facts.left:
        found.setdefault(reason_kind(row["reason"]), []).append(row["site"])
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return [{"reason": reason, "sites": sites} for reason, sites in ordered]


def _bench(measures: Measures) -> list[dict[str, Any]]:
    wanted = (
        ("latency_ms", "a run, ms"),
        ("ratio", "of the original's time"),
        ("peak_rss_mb", "peak memory, MB"),
        ("file_mb", "file, MB"),
        ("prefill_tokens_s", "prefill, tokens/s"),
        ("decode_tokens_s", "decode, tokens/s"),
    )
    names = ("original", "quantized")
    return [
        {"": name, **{label: figure(row[key]) for key, label in wanted if key in row}}
        for name, row in zip(names, measures.bench, strict=True)
    ]


def _provenance(facts: Facts) -> Sequence[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    report = facts.report or {}
    source = report.get("source") or {}
    if source.get("path"):
        rows.append(("made from", str(source["path"])))
    rows += [(f"SHA-256 of {name}", value) for name, value in (source.get("sha256") or {}).items()]
    if source.get("data"):
        data = source["data"]
        rows.append(("calibrated with", f"{data['path']} (limit {data['limit']})"))
    versions = [f"{name} {value}" for name, value in (report.get("versions") or {}).items()]
    rows += [("versions", ", ".join(versions))] if versions else []
    rows += [
        (f"file {name}", f"{megabytes(file['bytes'])}, SHA-256 {file['sha256']}")
        for name, file in (report.get("files") or {}).items()
    ]
    return rows
