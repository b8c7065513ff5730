"""A torch module traced to an ONNX graph by ``torch.onnx.export(dynamo=True)``."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxq.errors import ExportError, MissingDependency

__all__ = ["DEFAULT_OPSET", "DynamicShapes", "float_module", "named_inputs", "trace_module"]

DEFAULT_OPSET = 21
"""Has blocked DequantizeLinear, and still spells attention out."""

DynamicShapes = Mapping[str, Mapping[int, str]]
"""By input name: the dynamic axes and what to call them; the same name means the same size."""


def torch_package(purpose: str) -> Any:
    """Import torch or raise `MissingDependency` naming ``purpose``."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("torch", "torch", purpose) from error
    return torch


def named_inputs(module: Any, example_inputs: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    """Give each example input the name of its parameter of ``forward``.

    Raises:
        ExportError: not a module, an input is not a tensor, too many, or a name is unknown.
    """
    torch = torch_package("Exporting a torch module")
    if not isinstance(module, torch.nn.Module):
        raise ExportError(
            f"A {type(module).__name__} was given where a torch.nn.Module is exported: wrap it in "
            "one."
        )
    names = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    who = type(module).__name__
    if isinstance(example_inputs, Mapping):
        unknown = [name for name in example_inputs if name not in names]
        if unknown:
            raise ExportError(
                f"{who}.forward has no input {unknown[0]!r}: its inputs are {', '.join(names)}."
            )
        given = {name: example_inputs[name] for name in names if name in example_inputs}
    else:
        if len(example_inputs) > len(names):
            raise ExportError(
                f"{len(example_inputs)} example inputs were given, and {who}.forward takes "
                f"{len(names)}: {', '.join(names)}. Inputs taken through *args need a wrapper."
            )
        given = dict(zip(names, example_inputs, strict=False))
    for name, value in given.items():
        if not isinstance(value, torch.Tensor):
            raise ExportError(
                f"The example input {name!r} of {who} is a {type(value).__name__}, not a tensor: "
                "fix it inside a wrapper module, whose forward takes tensors only."
            )
    if not given:
        raise ExportError(f"{who} was given no example input: give one tensor for each input.")
    return given


def float_module(module: Any, dtype: str = "float32") -> Any:
    """The module itself when its floating-point weights have ``dtype`` on the CPU, else a copy.

    The module that was given is never changed.
    """
    torch = torch_package("Exporting a torch module")
    wanted = getattr(torch, dtype)
    tensors = [*module.parameters(), *module.buffers()]
    here = all(tensor.device.type == "cpu" for tensor in tensors)
    if here and all(t.dtype == wanted for t in tensors if t.is_floating_point()):
        return module
    return copy.deepcopy(module).to("cpu", wanted)


@contextlib.contextmanager
def evaluation_mode(module: Any) -> Iterator[None]:
    """Put every part of a module in eval mode inside the block, and each back afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def trace_module(
    module: Any,
    inputs: Mapping[str, Any],
    *,
    dynamic_shapes: DynamicShapes | None = None,
    output_names: Sequence[str] | None = None,
    opset: int = DEFAULT_OPSET,
) -> ir.Model:
    """Trace a module in float32 and eval mode.

    Args:
        module: takes and returns tensors (or tuples, dictionaries of them).
        inputs: example tensors by name of a parameter of ``forward``.
        dynamic_shapes: see `DynamicShapes`; axes that are not named are static.
        output_names: names of the flattened outputs; made by the exporter when None.
        opset: ONNX operator set to write.

    Raises:
        ExportError: an axis does not exist, or the exporter failed; its reason is in the message.
    """
    torch = torch_package("Exporting a torch module")
    shapes = _checked_shapes(inputs, dynamic_shapes or {})
    with evaluation_mode(module), _quiet():
        try:
            program = torch.onnx.export(
                module,
                (),
                kwargs=dict(inputs),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(inputs),
                output_names=list(output_names) if output_names else None,
                opset_version=opset,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(
                f"torch.onnx.export failed on {type(module).__name__}: {_reason(error)} Wrap the "
                "module so that its forward uses tensor operations only, and keep axes dynamic "
                "only where the code allows any size."
            ) from error
    model = program.model
    if not isinstance(model, ir.Model):
        raise ExportError(
            f"torch.onnx.export returned no graph for {type(module).__name__}. "
            "Install torch 2.10 or newer."
        )
    return model


def _checked_shapes(
    inputs: Mapping[str, Any], dynamic_shapes: DynamicShapes
) -> dict[str, dict[int, str]]:
    for name, axes in dynamic_shapes.items():
        if name not in inputs:
            raise ExportError(
                f"dynamic_shapes names the input {name!r}, and the inputs are {', '.join(inputs)}."
            )
        rank = inputs[name].dim()
        for axis in axes:
            if not 0 <= axis < rank:
                raise ExportError(
                    f"dynamic_shapes names axis {axis} of input {name!r}, whose example has "
                    f"{rank} axes: count from 0."
                )
    return {name: dict(dynamic_shapes.get(name, {})) for name in inputs}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and progress lines off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."
