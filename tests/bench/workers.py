"""``python -m tests.bench workers``: what workers cost for each site, and what two of them give.

First pieces that do nothing, of the size of a site of SmolLM2 (weight and Hessian of 1536 × 576),
go to two workers of each backend: what is left is the way there and back. Then GPTQ of the first
blocks of SmolLM2-135M, alternating: one thread, one worker with two threads, two workers; the codes
of all must be the same.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from onnxq.runtime.machine import machine
from onnxq.runtime.workers import Workers

SIDES = {
    "1 thread": {"threads": 1},
    "1 worker, 2 threads": {"threads": 2},
    "2 workers, processes": {"count": 2, "threads": 2},
    "2 workers, threads": {"count": 2, "threads": 2, "backend": "threads"},
}
RUN = """
import hashlib, json, sys, time
from onnxq import quantize
from onnxq.graph.sites import find_sites
from onnxq.graph.weights import walk_weights, weight_tensor
from onnxq.graph import load
from onnxq.models.smollm2 import SmolLm2
from onnxq.runtime.workers import Workers
given = json.loads(sys.argv[1])
names = [site.name for site in find_sites(load(given["model"])) if site.kind == "MatMul"]
rest = [] if given["blocks"] is None else names[7 * given["blocks"]:]
data = SmolLm2(calibration_windows=given["windows"] + 4).calibration({"model": given["model"]})
begun, cpu = time.perf_counter(), time.process_time()
done = quantize(
    given["model"], "int4_gptq", data=data["model"], check="off", workers=Workers(**given["how"]),
    set=[f"quantize_weights.exclude={json.dumps(rest)}"],
)
seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
digest = hashlib.sha256()
for _, value in walk_weights(done.model):
    digest.update(weight_tensor(value).tobytes())
print(json.dumps({"seconds": seconds, "cpu": cpu, "sites": len(done.quantized_sites),
                  "hash": digest.hexdigest()}))
"""


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench workers", description=__doc__)
    parser.add_argument("--model", type=Path, help="an exported SmolLM2, else one is exported")
    parser.add_argument("--blocks", type=int, default=6, help="0: no GPTQ; -1: the whole model")
    parser.add_argument("--windows", type=int, default=64, help="of 512 tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="*", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--backends", nargs="*", default=["processes", "threads", "ray"])
    options = parser.parse_args(argv)
    print(machine())
    for backend in options.backends:
        overhead(backend)
    if options.blocks:
        speed(options)


def nothing(problem: dict, threads: int) -> int:
    return threads


def overhead(backend: str) -> None:
    """Print milliseconds for a piece that does nothing, the start of the workers apart."""
    workers = Workers(count=2, threads=2, backend=backend)
    piece = {"rows": np.ones((1536, 576), np.float32), "hessian": np.ones((576, 576))}
    times = []
    for count in (2, 32, 32, 32):
        begun = time.perf_counter()
        workers.map(nothing, [piece] * count, lambda number, result: None, stop)
        times.append((time.perf_counter() - begun) / count * 1e3)
    first, rest = times[0] * 2 / 1e3, statistics.median(times[1:])
    print(
        f"{backend}: {rest:.2f} ms a piece ({min(times[1:]):.2f} to {max(times[1:]):.2f})", end=""
    )
    print(f"; the first two with the start of the workers {first:.1f} s", flush=True)


def stop(number: int, error: Exception) -> None:
    raise error


def speed(options: argparse.Namespace) -> None:
    """Print seconds of each side and its ratio to one thread, and refuse other codes."""
    blocks = None if options.blocks < 0 else options.blocks
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model
        if model is None:
            from onnxq.models.smollm2 import SmolLm2

            model = SmolLm2().build(Path(scratch))["model"]
        rows: dict[str, list[dict]] = {name: [] for name in options.sides}
        for _ in range(options.rounds):
            for name in options.sides:
                how = {"model": str(model), "blocks": blocks, "windows": options.windows}
                rows[name].append(measured({**how, "how": SIDES[name]}))
                print(name, rows[name][-1], file=sys.stderr, flush=True)
    hashes = {row["hash"] for some in rows.values() for row in some}
    if len(hashes) > 1:
        raise SystemExit("the sides gave different codes")
    base = [row["seconds"] for row in rows[options.sides[0]]]
    print(f"GPTQ of {rows[options.sides[0]][0]['sites']} sites, {options.windows} × 512 tokens")
    print("| | seconds | CPU seconds | × faster |\n|---|---:|---:|---:|")
    for name, some in rows.items():
        times = [row["seconds"] for row in some]
        ratios = [a / b for a, b in zip(base, times, strict=True)]
        middle, cpu = statistics.median(times), statistics.median(row["cpu"] for row in some)
        print(
            f"| {name} | {middle:.1f} ({min(times):.1f} to {max(times):.1f}) | {cpu:.1f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


def measured(given: dict) -> dict:
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUN, json.dumps(given)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])
