"""Matmuls with stored weights: operators of onnxq, of ONNX Runtime, and of other libraries.

All sides of a case alternate in one process: in each round every side makes as many calls as fit
into a fraction of a second, once the threads of the side before are asleep; each thread stays on a
core of its own. The ratio is the median over rounds. Beside each time stands the least that the
machine could take, from bytes per second and operations per second measured on it
(`tests.bench.roofline`).
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import rich.console

from onnxq import tables
from onnxq.formats import FAMILIES
from tests.bench.matmul_goals import SET, judged
from tests.bench.matmul_peers import folder_of, peer_names, peer_side
from tests.bench.matmul_sides import OWN, Side, onnxq_names, runtime_side
from tests.bench.measure import alternate, machine, pin_threads, wait_for_rest
from tests.bench.roofline import Roofline, measure_roofline

SHAPES = ("4096x4096", "11008x4096", "576x1536")
BASE = "MatMulNBits 4-bit g128"
INTEGERS = ("int4_g128", "int4", "int3_g128", "int2_g128")


def open_side(name: str, shape, threads: int, options, set_bytes: int = 0) -> Side | None:
    """The side of this name; None where a library has no such layout."""
    if name in peer_names(options.peers, threads):
        return peer_side(name, options.peers, shape, threads, set_bytes)
    return runtime_side(name, shape, threads, set_bytes)


def names_of(shape, threads: int, options) -> list[str]:
    """Sides to measure: of the runtime, of onnxq, of peers."""
    formats = options.formats or (*INTEGERS, *(n for family in FAMILIES for n in family.names()))
    names = [*OWN, *onnxq_names(formats, shape), *peer_names(options.peers, threads)]
    wanted = options.sides
    return [n for n in names if n == BASE or not wanted or any(part in n for part in wanted)]


def timed(sides: dict[str, Side], x: np.ndarray, threads: int, options) -> dict[str, list[float]]:
    """Microseconds of one weight, by side, in each round; each thread stays on a core."""
    calls = {name: side.bound(x) for name, side in sides.items()}
    for call in calls.values():
        call()
    pin_threads(threads)
    times = alternate(calls, options.rounds, options.seconds, time.perf_counter, wait_for_rest)
    return {name: [one / sides[name].weights for one in taken] for name, taken in times.items()}


def row_of(side: Side, taken, base, roof: Roofline, case: dict, shape) -> dict:
    """What was measured of one side in one case."""
    rows, columns = shape
    tokens = case["tokens"]
    nbytes = side.nbytes / side.weights
    # Activations are read and results written; they stay in the caches between calls.
    least = roof.microseconds(
        nbytes + 4 * tokens * (rows + columns), 2 * tokens * rows * columns, side.kind, side.nbytes
    )
    return {
        **case,
        "side": side.name,
        "bits": 8 * nbytes / (rows * columns),
        "us": taken,
        "base_us": base,
        "roof_us": least,
        "of_roof": least / statistics.median(taken),
    }


def measure_case(text: str, threads: int, roof: Roofline, options) -> list[dict]:
    """One shape: all sides at once, each number of tokens after the other."""
    shape = tuple(int(size) for size in text.split("x"))
    opened = {n: open_side(n, shape, threads, options) for n in names_of(shape, threads, options)}
    sides = {name: side for name, side in opened.items() if side is not None}
    rows = []
    for tokens in options.tokens:
        x = np.random.default_rng(1).standard_normal((tokens, shape[1]), np.float32)
        times = timed(sides, x, threads, options)
        case = {"threads": threads, "shape": text, "tokens": tokens}
        rows += [
            row_of(side, times[name], times[BASE], roof, case, shape)
            for name, side in sides.items()
        ]
        show(rows[-len(sides) :])
    for side in sides.values():
        side.close()
    return rows


def measure_set(threads: int, roof: Roofline, options) -> list[dict]:
    """As many weights as fill the set, one token: each side in a pair with the base."""
    shape, size = (4096, 4096), options.set_mib * 2**20
    x = np.random.default_rng(1).standard_normal((1, shape[1]), np.float32)
    base = runtime_side(BASE, shape, threads, size)
    case = {"threads": threads, "shape": SET, "tokens": 1}
    rows = []
    for name in names_of(shape, threads, options):
        side = base if name == BASE else open_side(name, shape, threads, options, size)
        if side is None:
            continue
        times = timed({name: side, BASE: base}, x, threads, options)
        rows.append(row_of(side, times[name], times[BASE], roof, case, shape))
        if side is not base:
            side.close()
    base.close()
    show(rows)
    return rows


def show(rows: list[dict]) -> None:
    """A table of one case, the fastest first."""
    shown = []
    for row in sorted(rows, key=lambda row: statistics.median(row["us"])):
        ratios = [mine / base for mine, base in zip(row["us"], row["base_us"], strict=True)]
        shown.append(
            {
                "side": row["side"],
                "bits": row["bits"],
                "us": statistics.median(row["us"]),
                "least to most": f"{min(row['us']):.0f} to {max(row['us']):.0f}",
                f"/ {BASE}": statistics.median(ratios),
                "range": f"{min(ratios):.2f} to {max(ratios):.2f}",
                "roof us": row["roof_us"],
                "of roof": f"{row['of_roof']:.0%}",
            }
        )
    first = rows[0]
    title = f"{first['shape']}, M = {first['tokens']}, {first['threads']} thread(s)"
    tables.table(_console(), shown, title=title)


def _console() -> rich.console.Console:
    return rich.console.Console(width=140)


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench matmul", description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--shapes", nargs="*", default=SHAPES, help="rows x columns")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--formats", nargs="+", help="of onnxq; all in common use")
    parser.add_argument("--sides", nargs="+", help="only sides whose names hold one of these")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.02, help="of each side in each round")
    parser.add_argument("--set-mib", type=int, default=512, help="of the weight set; 0: none")
    parser.add_argument("--peers", type=Path, help="folder of matmul_peers; PEERS of environment")
    parser.add_argument("--json", type=Path, help="also write everything measured")
    options = parser.parse_args(argv)
    options.peers = folder_of(options.peers)
    return options


def run(argv: list[str]) -> None:
    options = arguments(argv)
    where = machine()  # before threads are kept on cores, which are then all that it sees
    print(where, flush=True)
    rows, roofs = [], {}
    for threads in options.threads:
        roof = roofs[threads] = measure_roofline(threads)
        read = ", ".join(f"{size} MiB {rate:.0f}" for size, rate in roof.bandwidth.items())
        peak = ", ".join(f"{kind} {rate:.0f}" for kind, rate in roof.peak.items())
        print(f"\n{threads} thread(s): reads GB/s: {read}; peak Gop/s: {peak}", flush=True)
        for text in options.shapes:
            rows += measure_case(text, threads, roof, options)
        if options.set_mib:
            rows += measure_set(threads, roof, options)
    goals = list(judged(rows))
    tables.table(_console(), goals, title="goals")
    if options.json is not None:
        limits = {
            threads: {"GB/s by MiB": roof.bandwidth, "Gop/s": roof.peak}
            for threads, roof in roofs.items()
        }
        written = {"machine": where, "rooflines": limits, "rows": rows, "goals": goals}
        options.json.write_text(json.dumps(written, indent=1))
