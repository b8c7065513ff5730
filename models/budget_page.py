"""The measured part of ``docs/budget.md``, and its picture."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.models.budget_latency import latency_table

__all__ = ["PEERS", "determination", "page_of", "part_of", "picture_of"]

PEERS: Mapping[float, Sequence[tuple[str, float, float]]] = {
    4.25: (("IQ4_XS", 4.25, 31.3),),
    3.25: (("Q3_K", 3.44, 40.0), ("IQ3_XXS", 3.06, 56.6)),
    2.523: (("Q2_K", 2.63, 91.0), ("IQ2_S", 2.56, 144.0)),
    2.5: (("Q2_K", 2.63, 91.0), ("IQ2_S", 2.56, 144.0)),
}
"""Of llama.cpp with an importance matrix: name, bits per weight, perplexity; by budget."""

_MARKS = re.compile(r"(<!-- measured -->\n).*?(<!-- end -->)", re.S)
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 560, 440, 80, 20, 380


def page_of(page: Path, found: Mapping[str, Any], protocol: str, *, peers: bool) -> None:
    """Write the part between the marks of the page, and the picture beside it.

    Args:
        page: the file.
        found: finished cells, as `onnxq.models.budget_results` gives them.
        protocol: on which tokens they were measured.
        peers: whether figures of `PEERS` were measured on the same tokens.
    """
    text = page.read_text(encoding="utf-8")
    part = "\n".join(part_of(found, protocol, peers=peers))
    page.write_text(_MARKS.sub(lambda m: f"{m[1]}{part}\n{m[2]}", text), encoding="utf-8")
    page.with_suffix(".svg").write_text(picture_of(random_points(found)), encoding="utf-8")


def random_points(found: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(predicted, measured) rise of the loss in nats of every random mix."""
    cells = [cell for name, cell in found.items() if name.startswith("random")]
    return [(cell["predicted"], cell["loss"] - found["float"]) for cell in cells]


def determination(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """R² = 1 − Σ (measured − predicted)² / Σ (measured − mean)²: of the prediction as it is."""
    p, m = np.asarray(predicted), np.asarray(measured)
    return float(1 - np.sum((m - p) ** 2) / np.sum((m - m.mean()) ** 2))


def part_of(found: Mapping[str, Any], protocol: str, *, peers: bool) -> list[str]:
    """The lines of the measured part."""
    base = math.exp(found["float"])
    return [
        f"Perplexity of SmolLM2-135M-Instruct on {protocol}: {base:.4g} in float32.",
        "",
        *_random_lines(found),
        "**Mixes against single formats**, layers stored one by one by GPTQ on statistics of the "
        "float model and run in float; the written files are what `onnxq quantize` writes, with "
        "sequential statistics, run by their operators: the mix of `--bits`, its layers split by "
        "what their output channels matter, and the single format beside it.",
        "",
        *_mix_table(found, base, peers=peers),
        *latency_table(found.get("latency", ())),
    ]


def _random_lines(found: Mapping[str, Any]) -> list[str]:
    points = random_points(found)
    if len(points) < 3:
        return []
    base = math.exp(found["float"])
    rises = [(base * math.expm1(p), base * math.expm1(m)) for p, m in points]
    nats = determination(*zip(*points, strict=True))
    perplexities = determination(*zip(*rises, strict=True))
    fitted = np.corrcoef(np.asarray(points).T)[0, 1] ** 2
    return [
        f"**Predicted against measured**, {len(points)} random mixes: R² = {nats:.3f} of the "
        f"rise of the loss in nats, {perplexities:.3f} of the rise of the perplexity, of the "
        f"predictions as they are; {fitted:.3f} of a line through them.",
        "",
        "![Predicted and measured rise of the loss of random mixes](budget.svg)",
        "",
    ]


def _mix_table(found: Mapping[str, Any], base: float, *, peers: bool) -> list[str]:
    lines = [
        "| bits asked | mix | best single format of that size or near | excess saved "
        "| mix, written | single format, written | excess saved | peers |",
        "|---:|---:|---|---:|---:|---:|---:|---|",
    ]
    uniform = {n.partition("-")[2]: c for n, c in found.items() if n.startswith("uniform-")}
    for bits, others in PEERS.items():
        mix = found.get(f"mix-{bits:g}")
        fitting = {n: c for n, c in uniform.items() if bits - 0.5 < c["bits"] <= bits + 0.04}
        if mix is None or not fitting:
            continue
        name, best = min(fitting.items(), key=lambda item: item[1]["perplexity"])
        saved = _saved(mix, best, base)
        as_run = _as_run(
            found.get(f"written-mix-{bits:g}"), found.get(f"written-uniform-{name}"), base
        )
        beside = ", ".join(f"{peer} {ppl:.4g} at {at:g}" for peer, at, ppl in others)
        beside = beside if peers else "–"
        lines.append(
            f"| {bits:g} | {mix['perplexity']:.4g} at {mix['bits']:.3f} | `{name}` "
            f"{best['perplexity']:.4g} at {best['bits']:.3f} | {saved:.0%} | {as_run} | {beside} |"
        )
    return lines


def _as_run(mix: Mapping[str, Any] | None, single: Mapping[str, Any] | None, base: float) -> str:
    """Cells of the written files: the mix, the single format, the excess saved."""
    cells = [
        "–" if one is None else f"{one['perplexity']:.4g} at {one['bits']:.3f}"
        for one in (mix, single)
    ]
    saved = "–" if mix is None or single is None else f"{_saved(mix, single, base):.0%}"
    return " | ".join((*cells, saved))


def _saved(mix: Mapping[str, Any], single: Mapping[str, Any], base: float) -> float:
    """The part of a single format's excess perplexity that the mix does not have."""
    return float(1 - (mix["perplexity"] - base) / (single["perplexity"] - base))


def picture_of(points: Sequence[tuple[float, float]]) -> str:
    """Predicted against measured as an SVG, with the line where they are equal."""
    top = 1.08 * max((max(point) for point in points), default=1.0)
    right = _WIDTH - 30

    def across(value: float) -> float:
        return _LEFT + (right - _LEFT) * value / top

    def up(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * value / top

    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if top / s < 8)
    ticks = [step * n for n in range(int(top / step) + 1)]
    drawn = [
        f'<path d="M{_LEFT} {up(t):.1f}H{right}" stroke="#ddd"/>'
        f'<text x="{_LEFT - 8}" y="{up(t) + 5:.0f}" text-anchor="end">{t:g}</text>'
        f'<text x="{across(t):.0f}" y="{_BOTTOM + 20}" text-anchor="middle">{t:g}</text>'
        for t in ticks
    ]
    drawn += [
        f'<circle cx="{across(p):.1f}" cy="{up(m):.1f}" r="5" fill="#2563eb" fill-opacity="0.8"/>'
        for p, m in points
    ]
    middle = (_LEFT + right) // 2, (_TOP + _BOTTOM) // 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="14"><rect width="{_WIDTH}" height="{_HEIGHT}" '
        f'fill="white"/>{"".join(drawn)}'
        f'<path d="M{across(0):.0f} {up(0):.0f}L{across(top):.0f} {up(top):.0f}" stroke="#888" '
        'stroke-dasharray="5 4"/>'
        f'<path d="M{_LEFT} {_TOP}V{_BOTTOM}H{right}" fill="none" stroke="#444"/>'
        f'<text x="{middle[0]}" y="{_HEIGHT - 14}" text-anchor="middle">predicted rise of the '
        "loss, nats</text>"
        f'<text transform="translate(24 {middle[1]}) rotate(-90)" text-anchor="middle">measured '
        "rise of the loss, nats</text></svg>\n"
    )
