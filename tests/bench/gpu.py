"""The CUDA kernels, all of them, in one call: checked, then timed, and written to docs/gpu.md.

``python -m tests.bench gpu`` builds the library when it has no kernels (`--build`), runs the tests
of tests/gpu and times every kernel with CUDA's events beside the same product in float16 of torch
(cuBLAS), where torch sees the GPU. Without a GPU it says so and does nothing.
"""

import argparse
import ctypes
import datetime
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np

from onnxq import ops_library
from tests.gpu.driver import Gpu, NoGpu
from tests.gpu.kernels import Kernels, Weight

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gpu.md"
BEGIN, END = "<!-- measured on a GPU -->", "<!-- end of what was measured -->"

FORMATS = (
    "int4_g128",
    "int2_g64",
    "int8",
    "lut4",
    "lut2",
    "vq_d4n256",
    "aq_m2d8n256",
    "e8p2",
    "e8p4",
    "ternary",
    "trellis2_1mad",
    "trellis4_3inst",
    "trellis2_hyb",
)
SHAPES = ((4096, 4096), (11008, 4096), (576, 1536))
TOKENS = (1, 8, 128, 1024)


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench gpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-checks", action="store_true", help="time only")
    options = parser.parse_args(argv)
    try:
        gpu = Gpu()
    except NoGpu as reason:
        print(f"No kernel was run: {reason}")
        return
    if not hasattr(ctypes.CDLL(ops_library()), "onnxq_matmul_int_cuda"):
        print("The library has no CUDA kernels: building it again, with nvcc.")
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", str(ROOT)], check=True)
    if not options.no_checks:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            print("The kernels are not right: no times are taken.", file=sys.stderr)
            raise SystemExit(1)
    lines = table(gpu, options.rounds)
    print("\n".join(lines))
    write(lines)
    print(f"\nwritten to {PAGE.relative_to(ROOT)}")


def table(gpu: Gpu, rounds: int) -> list[str]:
    """The part of the page, a row for each format, shape and number of tokens."""
    today = datetime.datetime.now(tz=datetime.UTC).date()
    lines = [
        f"Measured on {gpu.name}, {today}; memory {gpu.bandwidth / 1e9:.0f} GB/s by its clock. "
        "float16 activations, rounded to int8 inside where the operator writes that; median of "
        f"{rounds} rounds.",
        "",
        "| format | rows x columns | tokens | µs | float16 µs | times as fast | of the bandwidth |",
        "|---|---|---|---|---|---|---|",
    ]
    kernels = Kernels(ops_library(), gpu)
    for (rows, columns), name in itertools.product(SHAPES, FORMATS):
        weight = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
        with Weight(kernels, name, weight) as stored:
            for tokens in TOKENS:
                lines.append(row(gpu, stored, tokens, rounds))
    return lines


def row(gpu: Gpu, weight: Weight, tokens: int, rounds: int) -> str:
    """A line of the table."""
    rows, columns = weight.shape
    a = np.random.default_rng(1).standard_normal((tokens, columns)).astype(np.float16)
    with weight.kernels.held(a, np.zeros((tokens, rows), np.float16)) as (source, target):
        call = weight.call(source, target, tokens, is_half=True, activation_bits=8)
        sides = [lambda: weight.kernels.product(weight.name, weight.numbers, call)]
        peer = float16_product(rows, columns, tokens)
        sides += [peer] if peer is not None else []
        times = [[] for _ in sides]
        for side in sides:
            side()
        for _, (side, taken) in itertools.product(range(rounds), zip(sides, times, strict=True)):
            taken.append(gpu.seconds(side, 50 if tokens <= 8 else 10))
    ours, *others = (float(np.median(taken)) for taken in times)
    part = weight.bytes / ours / gpu.bandwidth
    beside = f"{others[0] * 1e6:.1f} | {others[0] / ours:.2f}" if others else "- | -"
    shown = f"{part:.0%}" if tokens == 1 else "-"
    shape = f"{rows} x {columns}"
    return f"| `{weight.format}` | {shape} | {tokens} | {ours * 1e6:.1f} | {beside} | {shown} |"


def float16_product(rows: int, columns: int, tokens: int):
    """The same product in float16 by torch, or None where torch has no GPU."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    a = torch.randn(tokens, columns, device="cuda", dtype=torch.float16)
    w = torch.randn(rows, columns, device="cuda", dtype=torch.float16)
    y = torch.empty(tokens, rows, device="cuda", dtype=torch.float16)
    return lambda: torch.mm(a, w.T, out=y)


def write(lines: list[str]) -> None:
    """Put the table into its place on the page."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.split(END)[1]}")
