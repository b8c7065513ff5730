"""onnxq.Hadamard against a copy of the same tensor, and against its function body.

Kernels and memcpy on one thread are timed by the CPU clock of the thread, so that what else the
machine does costs them the same; sessions by the wall clock.
"""

import argparse
import ctypes
import statistics
import time

import numpy as np
import onnx_ir as ir

from onnxq.custom_ops.hadamard import hadamard_node
from onnxq.numerics import _native
from onnxq.numerics.hadamard import core_matrix, factor_size
from onnxq.runtime import Session, open_session
from tests.bench.measure import alternate, machine

SHAPES = (
    (1, 4096),
    (128, 4096),
    (512, 4096),
    (2048, 4096),
    (512, 1536),
    (2048, 1536),
    (512, 11008),
)


def network(columns: int, kind: str) -> ir.Model:
    """x rotated (``Hadamard``), or x alone through ``Identity``, which copies an input."""
    x = ir.Value(name="x", shape=ir.Shape(["n", columns]), type=ir.TensorType(ir.DataType.FLOAT))
    model = ir.Model(
        ir.Graph([x], [], nodes=[], opset_imports={"": 21}, name="bench"), ir_version=10
    )
    if kind == "Hadamard":
        node = hadamard_node(model, x, columns, name="rotate")
    else:
        node = ir.node(kind, [x])
        node.outputs[0].name, node.outputs[0].type = "y", x.type
        node.outputs[0].shape = x.shape
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])
    return model


def kernel(x: np.ndarray, y: np.ndarray, name: str):
    """The kernel alone, on one thread."""
    factors = factor_size(x.shape[1])
    core = (core_matrix(factors) / np.sqrt(factors.core)).astype(np.float32)
    return lambda: _native.hadamard_rows(x, core, y, 0, len(x), name, 1)


def copy(x: np.ndarray, y: np.ndarray):
    """memcpy of the whole tensor, on one thread."""
    return lambda: ctypes.memmove(y.ctypes.data, x.ctypes.data, x.nbytes)


def session_run(session: Session, x: np.ndarray):
    return lambda: session.run({"x": x})


def line(times: list[float], base: list[float]) -> str:
    ratios = [a / b for a, b in zip(times, base, strict=True)]
    low, high = min(ratios), max(ratios)
    return (
        f"{statistics.median(times):9.1f} us  {statistics.median(ratios):5.2f} "
        f"({low:.2f} to {high:.2f})"
    )


def compare(rows: int, columns: int, options: argparse.Namespace) -> None:
    x = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    y = np.zeros_like(x)
    print(f"\n{rows} x {columns} = {factor_size(columns)}, {x.nbytes / 1e6:.1f} MB; ratio to copy")
    alone = {"memcpy, 1 thread": copy(x, y)}
    for name in _native.hadamard_instruction_sets():
        alone[f"kernel {name}, 1 thread"] = kernel(x, y, name)
    times = alternate(alone, options.rounds, options.seconds, time.thread_time)
    for name, side in times.items():
        print(f"  {name:34s} {line(side, times['memcpy, 1 thread'])}")
    threads = options.threads
    with (
        open_session(network(columns, "Identity"), threads=threads) as plain,
        open_session(network(columns, "Hadamard"), threads=threads) as fast,
        open_session(network(columns, "Hadamard"), threads=threads, custom_ops=False) as body,
    ):
        names = [f"ONNX Runtime {kind}, {threads} threads" for kind in ("copy", "kernel", "body")]
        sides = (session_run(session, x) for session in (plain, fast, body))
        sides = dict(zip(names, sides, strict=True))
        times = alternate(sides, options.rounds, options.seconds, time.perf_counter)
        for name in names:
            print(f"  {name:34s} {line(times[name], times[names[0]])}")


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench hadamard")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.03, help="of each side in each round")
    parser.add_argument("--threads", type=int, default=2, help="of the sessions")
    options = parser.parse_args(argv)
    print(machine())
    for rows, columns in SHAPES:
        compare(rows, columns, options)
