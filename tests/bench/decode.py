"""Tokens per second in onnxruntime-genai: our int4 artifact against its own builder's int4."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxq
from onnxq.evaluate import token_rates
from onnxq.export import from_gguf
from onnxq.models.smollm2 import gguf_path
from tests.bench.measure import machine


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench decode")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        from_gguf(gguf_path(), folder / "float32", checkpoint=folder / "checkpoint")
        onnxq.quantize(
            folder / "float32",
            "int4",
            out=folder / "onnxq",
            set=[
                f"quantize_weights.format=int4_g{options.block}",
                "quantize_weights.overrides={}",
                "quantize_weights.embedding_format=float",
            ],
        )
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", "smollm2"]
        builder += ["-i", str(folder / "checkpoint"), "-o", str(folder / "builder")]
        builder += ["-p", "int4", "-e", "cpu", "--extra_options"]
        builder += [f"int4_block_size={options.block}", "int4_accuracy_level=4"]
        subprocess.run(builder, check=True, capture_output=True)
        sides = ("onnxq", "builder")
        rates = token_rates(
            [folder / side for side in sides], rounds=options.rounds, threads=options.threads
        )
    print(f"SmolLM2-135M int4 block {options.block}, {options.threads} threads\n{machine()}")
    for side, rate in zip(sides, rates, strict=True):
        print(
            f"  {side:8s} prefill {rate.prefill.median:6.0f} tok/s   decode "
            f"{rate.decode.median:6.1f} tok/s (quartiles {rate.decode.low:.1f} to "
            f"{rate.decode.high:.1f})"
        )
    print(f"  decode onnxq / builder: {rates[0].decode.median / rates[1].decode.median:.2f}")
