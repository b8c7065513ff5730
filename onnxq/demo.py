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
from onnxq.numerics.rounding import default_threads
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


def picture(rows: list[dict[str, Any]]) -> str:
    """The rows as an SVG: perplexity (logarithmic) against size, a labelled point for each."""
    width, height, left, bottom = 640, 320, 70, 270
    largest = max(row["MB"] for row in rows) * 1.15
    levels = [math.log(row["perplexity"]) for row in rows]
    low, high = min(levels) - 0.15, max(levels) + 0.15
    points = []
    for row, level in zip(rows, levels, strict=True):
        x = left + (width - left - 90) * row["MB"] / largest
        y = bottom - (bottom - 30) * (level - low) / (high - low)
        label = f"{row['model']}: {row['perplexity']} at {row['MB']} MB"
        points.append(
            f'<circle cx="{x:.0f}" cy="{y:.0f}" r="6" fill="#2563eb"/>'
            f'<text x="{min(x + 10, width - 215):.0f}" y="{y - 10:.0f}">{label}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="14"><rect width="{width}" height="{height}" '
        f'fill="white"/><path d="M{left} 20V{bottom}H{width - 20}" fill="none" stroke="#444"/>'
        f'<text x="{left}" y="{height - 15}">size in MB, from 0 (less is smaller)</text>'
        f'<text transform="translate(30 {bottom}) rotate(-90)">perplexity, log scale (less is '
        f"better)</text>{''.join(points)}</svg>\n"
    )
