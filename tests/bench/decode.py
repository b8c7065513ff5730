"""Tokens per second in onnxruntime-genai: artifacts of SmolLM2-135M, alternating in one process.

Sides are recipes by the names below, or as ``NAME=RECIPE,SETTING,...``; ``builder`` is the int4
model of onnxruntime-genai's own builder. Weights are rounded to nearest: codes cost the same,
whatever solver chose them. The first side is what the others are compared with.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnxq
from onnxq.evaluate import token_rates
from onnxq.export import from_gguf
from onnxq.models.smollm2 import gguf_path
from tests.bench.measure import machine

NEAREST = ("solver=nearest",)
SIDES = {
    "int4": (
        "int4",
        ("format=int4_g32", "overrides={}", "embedding_format=float"),
    ),
    "int8_dynamic": ("int8_dynamic", None),
    "w4a8": ("w4a8", NEAREST),
    "w3a8": ("w4a8", (*NEAREST, "format=int3_g128_two")),
    "w2a8": ("w4a8", (*NEAREST, "format=int2_g64_two")),
    "quarot_w4a8": ("quarot_w4a8", NEAREST),
}
"""Recipes, and settings of ``quantize_weights``; ``int4`` is what the builder writes."""


def side_of(text: str) -> tuple[str, tuple[str, ...] | None]:
    """Recipe and settings of a side."""
    if "=" not in text:
        return SIDES[text]
    recipe, *settings = text.split("=", 1)[1].split(",")
    return recipe, tuple(settings)


def make(text: str, scratch: Path) -> Path:
    """The folder of a side, made from the float32 one."""
    out = scratch / text.partition("=")[0]
    if text == "float32":
        return out
    if text == "builder":
        build(scratch / "checkpoint", out)
        return out
    recipe, settings = side_of(text)
    given = [f"quantize_weights.{one}" for one in settings or ()]
    # Two bits to nearest leave nothing of the model, which is as fast as a good one.
    onnxq.quantize(scratch / "float32", recipe, out=out, set=given, check="off")
    return out


def build(checkpoint: Path, out: Path) -> None:
    """The int4 model of onnxruntime-genai's own builder."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", "smollm2"]
    command += ["-i", str(checkpoint), "-o", str(out), "-p", "int4", "-e", "cpu"]
    command += ["--extra_options", "int4_block_size=32", "int4_accuracy_level=4"]
    subprocess.run(command, check=True, capture_output=True)


def show(names: Sequence[str], rates) -> None:
    """A line for each side, with ratios to the first."""
    base = rates[0]
    for name, rate in zip(names, rates, strict=True):
        prefill = rate.prefill.median / base.prefill.median
        decode = rate.decode.median / base.decode.median
        print(
            f"  {name:14s} prefill {rate.prefill.median:6.0f} ({rate.prefill.low:.0f} to "
            f"{rate.prefill.high:.0f}) tok/s, {prefill:.2f}   decode {rate.decode.median:6.1f} "
            f"({rate.decode.low:.1f} to {rate.decode.high:.1f}) tok/s, {decode:.2f}"
        )


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench decode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sides", nargs="+", default=["int4", "builder"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens")
    parser.add_argument("--keep", type=Path, help="make artifacts here, and take those that are")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.keep or Path(temporary)
        if not (scratch / "float32").exists():
            from_gguf(gguf_path(), scratch / "float32", checkpoint=scratch / "checkpoint")
        names = [text.partition("=")[0] for text in options.sides]
        folders = [
            scratch / name if (scratch / name).exists() else make(text, scratch)
            for name, text in zip(names, options.sides, strict=True)
        ]
        rates = token_rates(
            folders,
            prompt_tokens=options.prompt,
            new_tokens=options.new,
            rounds=options.rounds,
            threads=options.threads,
        )
    print(f"SmolLM2-135M, {options.prompt} + {options.new} tokens, {options.threads} threads")
    print(machine())
    show(names, rates)
