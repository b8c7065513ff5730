"""From an ONNX file to a TensorRT engine, with the sentences of the parser and the builder.

``tensorrt`` and ``tensorrt_rtx`` have the same Python API, so the module is a parameter. Networks
are strongly typed: every layer computes in the type that the model states.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxq.errors import UnsupportedGraph, UsageError
from onnxq.export.tensorrt_profiles import Shape

__all__ = [
    "Engine",
    "Messages",
    "build_engine",
    "configure",
    "dynamic_shapes",
    "messages_of",
    "parse_network",
]

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """A built engine.

    Attributes:
        plan: the serialized engine.
        layers: layers of the network before fusion.
        warnings: what parser and builder said on the way.
        timing_cache: times of kernels, for the next build; empty where none are taken.
    """

    plan: bytes
    layers: int
    warnings: tuple[str, ...]
    timing_cache: bytes = b""


class Messages:
    """What TensorRT logged: errors and warnings, oldest first."""

    def __init__(self) -> None:
        """Nothing was said yet."""
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def last_error(self) -> str:
        """The last error as one line."""
        return self.errors[-1] if self.errors else "it gave no reason"


def messages_of(trt: Any) -> tuple[Any, Messages]:
    """A logger for TensorRT that keeps what it is told, and passes it on to ``logging``."""
    said = Messages()

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                said.errors.append(" ".join(message.split()))
                _LOG.error("%s", message)
            elif severity == trt.ILogger.WARNING:
                said.warnings.append(" ".join(message.split()))
                _LOG.warning("%s", message)
            else:
                _LOG.debug("%s", message)

    return Logger(), said


def parse_network(trt: Any, builder: Any, logger: Any, path: Path, said: Messages) -> Any:
    """The strongly typed network of an ONNX file.

    Raises:
        UnsupportedGraph: the parser refuses it: its sentence, with the node.
    """
    flags = getattr(trt, "NetworkDefinitionCreationFlag", None)
    typed = getattr(flags, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(path)) and parser.num_errors == 0:
        return network
    if parser.num_errors == 0:
        raise UnsupportedGraph(f"TensorRT cannot read {path.name}: {said.last_error()}.")
    error = parser.get_error(0)
    where = f"{error.node_operator()} {error.node_name()!r}" if error.node_operator() else "a node"
    raise UnsupportedGraph(
        f"TensorRT's parser refuses {where} of {path.name}: {' '.join(error.desc().split())} "
        f"({error.code()}). `onnxq check` names the rule and what to do."
    )


def configure(
    trt: Any,
    builder: Any,
    network: Any,
    shapes: Sequence[Shape],
    *,
    capabilities: Sequence[int] = (),
    weight_streaming: bool = False,
) -> Any:
    """The configuration of a build: GPUs, profile of shapes, weight streaming.

    Raises:
        UsageError: TensorRT knows no such compute capability, or has no such option.
    """
    config = builder.create_builder_config()
    if capabilities:
        _set_capabilities(trt, config, capabilities)
    dynamic = dynamic_shapes(network, shapes)
    if dynamic:
        config.add_optimization_profile(_profile(builder, dynamic))
    if weight_streaming:
        flag = getattr(trt.BuilderFlag, "WEIGHT_STREAMING", None)
        if flag is None:
            raise UsageError(
                f"{trt.__name__} {trt.__version__} has no weight streaming: build without it."
            )
        config.set_flag(flag)
    return config


def _set_capabilities(trt: Any, config: Any, capabilities: Sequence[int]) -> None:
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        known = getattr(trt.ComputeCapability, f"SM{capability}", None)
        if known is None or not config.set_compute_capability(known, index):
            names = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
            raise UsageError(
                f"{trt.__name__} {trt.__version__} cannot build for compute capability "
                f"{capability / 10:.1f}: it knows {', '.join(names)}."
            )


def dynamic_shapes(network: Any, shapes: Sequence[Shape]) -> list[Shape]:
    """The shapes of the inputs that the network leaves open; the parser drops what nobody reads."""
    inputs = (network.get_input(i) for i in range(network.num_inputs))
    names = {value.name for value in inputs if any(size < 0 for size in value.shape)}
    return [shape for shape in shapes if shape.name in names]


def _profile(builder: Any, shapes: Sequence[Shape]) -> Any:
    profile = builder.create_optimization_profile()
    for shape in shapes:
        try:
            profile.set_shape(shape.name, shape.least, shape.best, shape.most)
        except (RuntimeError, TypeError) as error:
            raise UsageError(
                f"Input {shape.name!r} cannot have shapes {shape.least}, {shape.best}, "
                f"{shape.most}: {error} Give others by `shapes`."
            ) from error
    return profile


def build_engine(trt: Any, path: Path, shapes: Sequence[Shape], **options: Any) -> Engine:
    """Build the engine of an ONNX file.

    Args:
        trt: the module ``tensorrt`` or ``tensorrt_rtx``.
        path: the ONNX file, external data beside it.
        shapes: of all inputs.
        **options: of `configure`.

    Raises:
        UnsupportedGraph: parser or builder refuse the model.
        UsageError: an option does not go with this version.
    """
    logger, said = messages_of(trt)
    builder = trt.Builder(logger)
    network = parse_network(trt, builder, logger, path, said)
    config = configure(trt, builder, network, shapes, **options)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UnsupportedGraph(
            f"TensorRT's parser takes {path.name}, and its builder refuses it: {said.last_error()}."
        )
    return Engine(
        plan=bytes(plan),
        layers=network.num_layers,
        warnings=tuple(dict.fromkeys(said.warnings)),
    )
