"""The plugins for TensorRT, all of them, in one call: checked, then built into engines and timed.

``python -m tests.bench tensorrt`` runs the tests marked ``trt``, builds an engine of one product
with every operator by the plugins in C++ and by those in Python, compares each with ONNX Runtime,
times it, and writes docs/targets/tensorrt.md. It needs a GPU, TensorRT, and onnxq built where nvcc
and TensorRT's headers are; without these it says what is missing, and does nothing.
"""

import argparse
import datetime
import importlib
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.custom_ops.catalog import spec_of
from onnxq.errors import OnnxqError
from onnxq.export.to_tensorrt import TensorRt
from onnxq.formats import parse_format
from onnxq.graph import save
from tests.custom_ops.matmul_cases import one_node_model
from tests.gpu.driver import Gpu, NoGpu

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "targets" / "tensorrt.md"
BEGIN, END = "<!-- measured: plugins -->", "<!-- end of plugins -->"
FORMATS = ("int4_g128", "lut4", "vq_d4n256", "e8p2", "ternary", "trellis2_hyb")
SHAPE = (4096, 4096)
KINDS = ("onnxq", "python")
TOKENS = {1: (1, 1, 512), 128: (1, 128, 512)}


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench tensorrt", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args(argv)
    missing = what_is_missing()
    if missing is not None:
        print(f"No plugin was run: {missing}")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "trt", "tests/custom_ops"]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        print("The plugins are not right: no engine is built.", file=sys.stderr)
        raise SystemExit(1)
    lines = table(options.rounds)
    print("\n".join(lines))
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.split(END)[1]}")


def what_is_missing() -> str | None:
    """What this machine lacks, as a sentence; None when it has all."""
    try:
        Gpu()
    except NoGpu as reason:
        return str(reason)
    for name in ("tensorrt", "polygraphy"):
        try:
            importlib.import_module(name)
        except ImportError:
            return f"the package {name!r} is not installed: pip install 'onnxq[tensorrt]'."
    return None


def table(rounds: int) -> list[str]:
    """The part of the page: a row for each format and kind of plugin."""
    trt = importlib.import_module("tensorrt")
    today = datetime.datetime.now(tz=datetime.UTC).date()
    lines = [
        f"Measured on {Gpu().name}, TensorRT {trt.__version__}, {today}: a product of "
        f"{SHAPE[0]} x {SHAPE[1]}, float16 activations, median of {rounds} rounds.",
        "",
        "| format | plugins | tokens | µs | error against ONNX Runtime |",
        "|---|---|---|---|---|",
    ]
    for name, kind, tokens in itertools.product(FORMATS, KINDS, TOKENS):
        lines.append(row(name, kind, tokens, rounds))
    return lines


def row(name: str, kind: str, tokens: int, rounds: int) -> str:
    """A line of the table; where the engine is refused, why."""
    fmt = parse_format(name)
    packed = fmt.pack(fmt.encode(np.random.default_rng(0).standard_normal(SHAPE, np.float32)))
    spec = spec_of(fmt, SHAPE)
    model = one_node_model(spec, fmt, packed, SHAPE, dtype=ir.DataType.FLOAT16)
    target = TensorRt(plugins=(kind,), shapes={"n": TOKENS[tokens]})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            found = target.build(save(model, folder / "model.onnx"), folder)["model.engine"]
            seconds = time_engine((folder / "model.engine").read_bytes(), tokens, rounds)
        except OnnxqError as error:
            return f"| `{name}` | {kind} | {tokens} | - | {str(error).splitlines()[0]} |"
    error = max(found["outputs"].values())
    return f"| `{name}` | {kind} | {tokens} | {seconds * 1e6:.1f} | {error:.1e} |"


def time_engine(plan: bytes, tokens: int, rounds: int) -> float:
    """Median seconds of an engine of one product, copies to and from the GPU not counted."""
    backend = importlib.import_module("polygraphy.backend.trt")
    feeds = {"x": np.zeros((tokens, SHAPE[1]), np.float16)}
    taken = []
    with backend.TrtRunner(backend.EngineFromBytes(plan)) as runner:
        for _ in range(rounds):
            begun = time.perf_counter()
            runner.infer(feeds, copy_outputs_to_host=False)
            taken.append(runner.last_inference_time() or time.perf_counter() - begun)
    return float(np.median(taken))
