"""The main job on a real model: export, quantize three ways, measure side by side, generate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from onnxq import api
from onnxq.errors import OnnxqError
from onnxq.evaluate import token_rates
from onnxq.evaluate.size import file_bytes, weight_bits
from onnxq.graph import load
from onnxq.models.registry import task
from onnxq.numerics.threads import default_threads
from onnxq.passes.base import Progress
from onnxq.runtime.generation import TextGenerator

RECIPES = ("int8", "int4_channel", "int4")
PROMPT = "The capital of France is"
_NEW_TOKENS = 24


def run_demo(folder: Path, progress: Progress) -> list[dict[str, Any]]:
    """Export SmolLM2-135M from GGUF, quantize it, and measure every version.

    Args:
        folder: where the models are written; what an earlier run left there is written again.
        progress: called as work proceeds.

    Returns:
        One row for each model: size, bits per weight, perplexity, tokens per second, text.
    """
    job = task("smollm2")
    source = folder / "float32"
    progress("export SmolLM2 from GGUF", 0, 1)
    built = job.build(source)
    progress("export SmolLM2 from GGUF", 1, 1)
    samples = [*job.calibration(built)["model"][:4], *job.held_back(built)["model"]]
    folders = [source]
    for recipe in RECIPES:
        out = folder / recipe
        api.quantize(source, recipe, data=samples, out=out, progress=progress)
        folders.append(out)
    rows = []
    for number, place in enumerate(folders):
        progress("measure", number, len(folders))
        rows.append(_row(place, job))
    for row, rates in zip(
        rows, token_rates(folders, threads=default_threads(), progress=progress), strict=True
    ):
        row["prefill tok/s"] = round(rates.prefill.median)
        row["decode tok/s"] = round(rates.decode.median)
    for row, place in zip(rows, folders, strict=True):
        row["text"] = _text(place)
    (folder / "demo.svg").write_text(picture(rows), encoding="utf-8")
    progress("measure", len(folders), len(folders))
    return rows


def _row(folder: Path, job: Any) -> dict[str, Any]:
    file = folder / "model.onnx"
    model = load(file)
    bits = weight_bits(model).bits_per_weight
    if bits is None:
        raise OnnxqError(f"{file} has no linear sites: the export went wrong.")
    return {
        "model": folder.name,
        "MB": round(file_bytes(file, model) / 1e6, 1),
        "bits/weight": round(bits, 2),
        "perplexity": round(float(job.evaluate({"model": file})["perplexity"]), 2),
    }


def _text(folder: Path) -> str:
    with TextGenerator(folder) as generator:
        done = generator.generate(generator.encode(PROMPT), _NEW_TOKENS)
        return (PROMPT + generator.decode(done.ids)).strip()


_WIDTH, _HEIGHT = 640, 340
_LEFT, _TOP, _BOTTOM = 70, 30, 280


def picture(rows: list[dict[str, Any]]) -> str:
    """The rows as an SVG: perplexity (logarithmic) against size, a labelled point for each."""
    largest = max(row["MB"] for row in rows) * 1.15
    levels = [math.log(row["perplexity"]) for row in rows]
    low, high = min(levels) - 0.15, max(levels) + 0.15

    def across(size: float) -> float:
        return float(_LEFT + (_WIDTH - _LEFT - 90) * size / largest)

    def up(perplexity: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (math.log(perplexity) - low) / (high - low)

    rounds = [digit * 10**power for power in range(7) for digit in (1, 2, 3, 5, 7)]
    drawn = [_size_mark(across(size), size) for size in range(0, int(largest) + 1, 100)]
    drawn += [_level_mark(up(n), n) for n in rounds if low <= math.log(n) <= high]
    drawn += [_point(across(row["MB"]), up(row["perplexity"]), row) for row in rows]
    middle = (_LEFT + _WIDTH) // 2, (_TOP + _BOTTOM) // 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="14"><rect width="{_WIDTH}" height="{_HEIGHT}" '
        f'fill="white"/>{"".join(drawn)}'
        f'<path d="M{_LEFT} 20V{_BOTTOM}H{_WIDTH - 20}" fill="none" stroke="#444"/>'
        f'<text x="{middle[0]}" y="{_HEIGHT - 10}" text-anchor="middle">size in MB</text>'
        f'<text transform="translate(22 {middle[1]}) rotate(-90)" text-anchor="middle">'
        "perplexity (lower is better)</text></svg>\n"
    )


def _size_mark(x: float, size: int) -> str:
    return (
        f'<path d="M{x:.0f} {_BOTTOM}v5" stroke="#444"/>'
        f'<text x="{x:.0f}" y="{_BOTTOM + 20}" text-anchor="middle">{size}</text>'
    )


def _level_mark(y: float, value: int) -> str:
    return (
        f'<path d="M{_LEFT} {y:.0f}H{_WIDTH - 20}" stroke="#ddd"/>'
        f'<text x="{_LEFT - 8}" y="{y + 5:.0f}" text-anchor="end">{value}</text>'
    )


def _point(x: float, y: float, row: dict[str, Any]) -> str:
    """A dot with its label to the right, or, near the right edge, above it."""
    label = f"{row['model']}: {row['perplexity']} at {row['MB']} MB"
    place = f'x="{x + 12:.0f}" y="{y - 8:.0f}"'
    if x > _WIDTH - 250:
        place = f'x="{min(x, _WIDTH - 110):.0f}" y="{y - 14:.0f}" text-anchor="middle"'
    return f'<circle cx="{x:.0f}" cy="{y:.0f}" r="6" fill="#2563eb"/><text {place}>{label}</text>'
