"""TensorRT engines through Polygraphy: built, and compared with ONNX Runtime where a GPU is.

Polygraphy is NVIDIA's toolkit over TensorRT; its configuration, profile and runner follow the
versions of TensorRT, which differ more from one another than the network API does.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.errors import MissingDependency, UnsupportedGraph
from onnxq.export.check import relative_error
from onnxq.export.tensorrt_engine import Engine, dynamic_shapes, messages_of, parse_network
from onnxq.export.tensorrt_profiles import Shape
from onnxq.graph import load
from onnxq.runtime import open_session, random_samples
from onnxq.runtime.decoder import is_cache

__all__ = ["build_with_polygraphy", "compare_engine", "has_gpu"]


def build_with_polygraphy(
    trt: Any,
    path: Path,
    shapes: Sequence[Shape],
    *,
    timing_cache: Path | None = None,
    weight_streaming: bool = False,
) -> Engine:
    """Build the engine of an ONNX file, its kernels measured on the GPU of this machine.

    Args:
        trt: the module that Polygraphy uses: ``tensorrt``.
        path: the ONNX file, external data beside it.
        shapes: of all inputs.
        timing_cache: file to take kernel times from.
        weight_streaming: let weights stream from host memory.

    Raises:
        UnsupportedGraph: parser or builder refuse the model.
        MissingDependency: Polygraphy is not installed.
    """
    backend = _polygraphy("polygraphy.backend.trt")
    logger, said = messages_of(trt)
    builder = trt.Builder(logger)
    network = parse_network(trt, builder, logger, path, said)
    profile = backend.Profile()
    for shape in dynamic_shapes(network, shapes):
        profile.add(shape.name, min=shape.least, opt=shape.best, max=shape.most)
    options: dict[str, Any] = {"profiles": [profile]} if len(profile) else {}
    if timing_cache is not None:
        options["load_timing_cache"] = str(timing_cache)
    if weight_streaming:
        options["weight_streaming"] = True
    with tempfile.TemporaryDirectory(prefix="onnxq-tensorrt-") as folder:
        cache = Path(folder) / "timing.cache"
        try:
            plan = backend.engine_bytes_from_network(
                (builder, network),
                config=backend.CreateConfig(**options),
                save_timing_cache=str(cache),
            )
        except _polygraphy("polygraphy.exception").PolygraphyException as error:
            raise UnsupportedGraph(
                f"TensorRT's parser takes {path.name}, and its builder refuses it: "
                f"{said.last_error()}."
            ) from error
        times = cache.read_bytes() if cache.exists() else b""
    return Engine(
        plan=bytes(plan),
        layers=network.num_layers,
        timing_cache=times,
        warnings=tuple(dict.fromkeys(said.warnings)),
    )


def compare_engine(path: Path, engine: Engine, shapes: Sequence[Shape]) -> Mapping[str, float]:
    """Relative error max|a − b| / max|b| of each output against ONNX Runtime, on random inputs.

    At the best shapes; a decoder with a cache gets a short prompt and an empty cache.
    """
    backend = _polygraphy("polygraphy.backend.trt")
    model = load(path)
    best = {shape.name: shape.best for shape in shapes}
    with open_session(path) as session:
        has_cache = any(is_cache(spec) for spec in session.inputs)
    if not has_cache:
        for value in model.graph.inputs:
            value.shape = ir.Shape(best[value.name or ""])
    with open_session(model) as session:
        (feeds,) = random_samples(session, 1)
        expected = session.run(feeds)
    with backend.TrtRunner(backend.EngineFromBytes(engine.plan)) as runner:
        found = runner.infer(feeds)
        return {name: relative_error(np.asarray(found[name]), expected[name]) for name in expected}


def has_gpu() -> bool:
    """Whether the NVIDIA driver is there and finds a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return bool(found and count.value > 0)


def _polygraphy(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(
            "polygraphy", "tensorrt", "Building engines for tensorrt"
        ) from error
