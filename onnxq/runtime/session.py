"""Open ONNX Runtime sessions on files, bytes or models in memory, and run them by name.

Only this room imports onnxruntime. A model in memory is written to a temporary folder first
(streamed, so its weights are never all in memory twice) and the folder is gone when the session
closes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxq.errors import MissingDependency, OnnxqError, UnsupportedGraph
from onnxq.numerics.threads import thread_limit
from onnxq.runtime.closing import Closing
from onnxq.runtime.operators import register_operators

Shape = tuple[int | str | None, ...]

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(bfloat16)": np.dtype(ml_dtypes.bfloat16),
    "tensor(string)": np.dtype(object),
    "tensor(bool)": np.dtype(np.bool_),
    **{
        f"tensor({name})": np.dtype(name)
        for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
    },
}


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: the name to feed or fetch it by.
        dtype: NumPy dtype; ``object`` for strings and for anything that is not a tensor.
        shape: a number for a static dimension, a name or None for a dynamic one.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Shape

    @classmethod
    def of(cls, arg: Any) -> TensorSpec:
        """Read the spec from an onnxruntime ``NodeArg``."""
        return cls(arg.name, _DTYPES.get(arg.type, np.dtype(object)), tuple(arg.shape))


class Session(Closing):
    """A loaded model that runs on arrays by name. A context manager; see `open_session`."""

    def __init__(self, session: Any, label: str, cleanup: contextlib.ExitStack) -> None:
        """Wrap an ``onnxruntime.InferenceSession``; ``cleanup`` is closed with this object."""
        self._session = session
        self._label = label
        self._cleanup = cleanup
        self.inputs = tuple(TensorSpec.of(arg) for arg in session.get_inputs())
        self.outputs = tuple(TensorSpec.of(arg) for arg in session.get_outputs())

    def close(self) -> None:
        """Free the model and delete its temporary files."""
        self._session = None
        self._cleanup.close()

    def end_profiling(self) -> Path:
        """Write the profile and say where; profiling was switched on by ``configure``."""
        return Path(str(self._session.end_profiling()))

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run once and return outputs by name.

        Args:
            feeds: every input by name.
            outputs: which outputs to compute; all of them when None.

        Raises:
            OnnxqError: the runtime refused the feeds or failed inside a node; its message is kept.
        """
        names = [spec.name for spec in self.outputs] if outputs is None else list(outputs)
        try:
            values = self._session.run(names, dict(feeds))
        except Exception as error:
            given = {name: getattr(array, "shape", None) for name, array in feeds.items()}
            shapes = ", ".join(f"{name} {shape}" for name, shape in list(given.items())[:6])
            shapes += ", ..." if len(given) > 6 else ""
            raise OnnxqError(
                f"ONNX Runtime could not run {self._label} on inputs of shapes {shapes}: {error}"
            ) from error
        return dict(zip(names, values, strict=True))


def open_session(
    source: ir.Model | str | Path | bytes,
    *,
    optimize: bool = True,
    threads: int | None = None,
    extra_outputs: Sequence[str] = (),
    shapes_first: bool = False,
    lean: bool = False,
    custom_ops: bool | None = None,
    configure: Callable[[Any], None] | None = None,
) -> Session:
    """Load a model into ONNX Runtime on the CPU.

    Args:
        source: a file, serialized bytes, or a model in memory (left as it is).
        optimize: run the runtime's graph optimizations; off for bit-exact comparisons.
        threads: threads inside an operator; None takes the limit of this process, and without one
            leaves the choice to the runtime.
        extra_outputs: names of inner values of the main graph to return as well.
        shapes_first: run Shape and Size nodes as soon as what they read is there, so that it need
            not be kept for them; otherwise the runtime may run them last of all.
        lean: idle threads sleep instead of spinning, and memory goes back to the system as soon as
            it is free: for sessions that take turns with other work and whose outputs are kept.
        custom_ops: load the kernels of onnxq's own operators where they are built; False runs
            these operators by the functions in the model; None loads them unless the environment
            says ``ONNXQ_CUSTOM_OPS=0``.
        configure: changes the ``onnxruntime.SessionOptions`` before the model is loaded.

    Raises:
        UnsupportedGraph: the runtime does not take the model; its message is kept.
        MissingDependency: neither onnxruntime nor onnxruntime-gpu is installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime", "cpu", "Running a model") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    threads = threads or thread_limit()
    if threads is not None:
        options.intra_op_num_threads = threads
    if shapes_first:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if lean:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False
    register_operators(options, custom_ops)
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if configure is not None:
        configure(options)
    with contextlib.ExitStack() as cleanup:
        payload, label = _payload(source, extra_outputs, cleanup)
        try:
            session = onnxruntime.InferenceSession(
                payload, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise UnsupportedGraph(f"ONNX Runtime does not load {label}: {error}") from error
        return Session(session, label, cleanup.pop_all())


def _payload(
    source: ir.Model | str | Path | bytes,
    extra_outputs: Sequence[str],
    cleanup: contextlib.ExitStack,
) -> tuple[str | bytes, str]:
    """What InferenceSession takes, and what to call it in messages."""
    from onnxq.graph import load, save

    if not isinstance(source, ir.Model):
        if not extra_outputs:
            return (source, "the model") if isinstance(source, bytes) else (str(source),) * 2
        source = load(source)
    label = f"the model {source.graph.name!r}"
    if extra_outputs:
        source = source.clone()
        _expose(source, extra_outputs)
    folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="onnxq-"))
    return str(save(source, Path(folder) / "model.onnx")), label


def _expose(model: ir.Model, names: Sequence[str]) -> None:
    """Add inner values of the main graph to its outputs."""
    wanted = dict.fromkeys(names)
    present = {value.name for value in model.graph.outputs}
    found = {
        value.name: value
        for node in model.graph
        for value in node.outputs
        if value.name in wanted and value.name not in present
    }
    missing = [name for name in wanted if name not in found and name not in present]
    if missing:
        raise UnsupportedGraph(
            f"The main graph of {model.graph.name!r} computes no value named {missing[0]!r}: "
            "only values of the main graph can be observed."
        )
    model.graph.outputs.extend(found.values())
