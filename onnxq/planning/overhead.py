"""Memory that no shape explains, measured in a fresh process: imports, and what a runtime keeps.

Run as a program it imports what a quantizing run imports, then opens small models of one weight in
ONNX Runtime as a walk opens its segments, and as a check opens a model file, and prints how far
resident memory rose for each byte of the weight.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxq.errors import OnnxqError
from onnxq.runtime.measured_table import MeasuredTable

__all__ = ["Overhead", "measured_overhead"]

_ROWS, _COLUMNS = 4096, 8192
"""Large enough that the C library gives the memory of each array back."""
_ENTRIES = ("float16", "float32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overhead:
    """Bytes, and bytes for each stored byte of weights.

    Attributes:
        idle: resident memory once all is imported but the runtime.
        runtime: what the runtime adds.
        mapped: pages of libraries among both, which the system takes back where it must.
        opened16: peak while a segment with float16 matrices is opened and run.
        opened32: with float32 matrices.
        looked_up: with a table that is only looked up.
        checked16: peak while a file with float16 matrices is opened and run unoptimized.
        checked32: with float32 matrices.
    """

    idle: float
    runtime: float
    mapped: float
    opened16: float
    opened32: float
    looked_up: float
    checked16: float
    checked32: float


def measured_overhead(table: MeasuredTable) -> Overhead:
    """What this machine was found to take, measured the first time: some seconds.

    Raises:
        OnnxqError: the process that measures failed; what it wrote last is kept.
    """
    found: dict[str, float] = {}

    def get(name: str) -> float:
        if not found:
            found.update(_in_a_fresh_process())
        return found[name]

    names = [field.name for field in dataclasses.fields(Overhead)]
    return Overhead(**{name: table.get(f"memory {name}", lambda: get(name)) for name in names})  # noqa: B023


def _in_a_fresh_process() -> dict[str, float]:
    command = [sys.executable, "-P", "-m", __name__]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise OnnxqError(f"Measuring the memory of a small run failed: {last}")
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _rise(run: Callable[[], object]) -> int:
    """How far resident memory rises above what it was."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is that of now
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _measure() -> dict[str, float]:
    """What the fresh process does."""
    import numpy as np

    # A program of its own, which does what every run does: rooms above this one included.
    quantize = importlib.import_module("onnxq.api").quantize
    square = np.ones((512, 512), np.float32)
    square @ square  # the BLAS takes its buffers
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        small = _model("float32", "MatMul", 64)
        quantize(small, "int4", check="off", out=Path(folder) / "out")  # what a run imports
        idle = _status("VmHWM")
        data: Any = [_feeds("float32", "MatMul", 64)] * 2
        quantize(small, "int4_gptq", data=data, check="off", out=Path(folder) / "out")
    found: dict[str, float] = {"idle": idle, "runtime": _status("VmHWM") - idle}
    found["mapped"] = _status("RssFile")
    for entry in _ENTRIES:
        nbytes = _ROWS * _COLUMNS * int(entry[-2:]) // 8
        bits = entry[-2:]
        found[f"opened{bits}"] = _rise(lambda: _open_segment(entry, "MatMul")) / nbytes  # noqa: B023
        with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
            path = _write(entry, Path(folder))
            found[f"checked{bits}"] = _rise(lambda: _open_file(path)) / nbytes  # noqa: B023
    nbytes = _ROWS * _COLUMNS * 2
    found["looked_up"] = _rise(lambda: _open_segment("float16", "Gather")) / nbytes
    return found


def _model(entry: str, kind: str, rows: int) -> object:
    """A model of one weight, written to memory only when it is read."""
    import numpy as np
    import onnx_ir as ir

    from onnxq.graph.weights import add_weight

    reads = "float16[n, k] x" if entry == "float16" else "float[n, k] x"
    call = "MatMul (x, w)" if kind == "MatMul" else "Gather (w, x)"
    reads = "int64[n] x" if kind == "Gather" else reads
    gives = "float16" if entry == "float16" else "float"
    text = (
        f'<ir_version: 10, opset_import: ["" : 21]>\n'
        f"g ({reads}, {gives}[a, b] w) => ({gives}[n, m] y) {{ y = {call} }}"
    )
    model = ir.from_onnx_text(text)
    declared = model.graph.inputs[1]
    model.graph.inputs.remove(declared)
    declared.name = "declared"
    dtype = ir.DataType.FLOAT16 if entry == "float16" else ir.DataType.FLOAT
    weight = add_weight(
        model.graph,
        "w",
        shape=(rows, _COLUMNS),
        dtype=dtype,
        compute=lambda: np.ones((rows, _COLUMNS), dtype.numpy()),
    )
    next(iter(model.graph)).replace_input_with(1 if kind == "MatMul" else 0, weight)
    return model


def _feeds(entry: str, kind: str, rows: int) -> dict[str, object]:
    import numpy as np

    is_table = kind == "Gather"
    return {"x": np.zeros(2, np.int64) if is_table else np.zeros((2, rows), np.dtype(entry))}


def _open_segment(entry: str, kind: str, rows: int = _ROWS) -> None:
    import onnx_ir as ir

    from onnxq.runtime import open_session

    model: Any = _model(entry, kind, rows)
    feeds: Any = _feeds(entry, kind, rows)
    with open_session(ir.to_proto(model).SerializeToString(), lean=True) as session:
        session.run(feeds)


def _write(entry: str, folder: Path) -> Path:
    from onnxq.graph import save

    model: Any = _model(entry, "MatMul", _ROWS)
    return save(model, folder / "model.onnx", external=True)


def _open_file(path: Path) -> None:
    from onnxq.runtime import open_session

    with open_session(path, optimize=False) as session:
        entry = "float16" if session.inputs[0].dtype.itemsize == 2 else "float32"
        feeds: Any = _feeds(entry, "MatMul", _ROWS)
        session.run(feeds)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure()) + "\n")
