"""From a torch module: traced, written, and compared with the module on inputs of other sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import ExportError, OnnxqError
from onnxq.export.check import Outputs, Verdict, judge, rounding_bound_of_module
from onnxq.export.exported import Exported, fresh_folder
from onnxq.export.genai import copy_companions
from onnxq.export.tracing import (
    DEFAULT_OPSET,
    DynamicShapes,
    evaluation_mode,
    float_module,
    named_inputs,
    torch_package,
    trace_module,
)
from onnxq.graph import save
from onnxq.runtime import Session, open_session

__all__ = ["check_module", "from_torch"]

_OTHER_SIZES = (1, 3)
"""What is added to each dynamic axis in the inputs that are tried besides the example."""


def from_torch(
    module: Any,
    example_inputs: Sequence[Any] | Mapping[str, Any],
    out: str | Path,
    *,
    dynamic_shapes: DynamicShapes | None = None,
    output_names: Sequence[str] | None = None,
    opset: int = DEFAULT_OPSET,
    task: str = "custom",
    companions: str | Path | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export a torch module to ``model.onnx`` and compare it with the module.

    The module is taken in float32 and eval mode and is not changed. The comparison runs the
    example inputs and, where axes are dynamic, inputs of other sizes made of them.

    Args:
        module: a ``torch.nn.Module`` whose forward takes and returns tensors (tuples and
            dictionaries of tensors too). One on a GPU is copied to the CPU.
        example_inputs: tensors in the order of ``forward``, or by name.
        out: folder to write.
        dynamic_shapes: by input name the dynamic axes and what to call them, e.g.
            ``{"input_ids": {0: "batch", 1: "sequence"}}``. Axes of the same name have the same
            size. All other axes are fixed at the size of the example. A dynamic axis of size 1 in
            the example is doubled, for torch takes a 1 for a constant.
        output_names: names of the outputs, flattened; keys of a dictionary by default.
        opset: ONNX operator set.
        task: what the model is for.
        companions: a folder whose tokenizer, processor and configuration files are copied along.
        overwrite: replace a model folder that is there.

    Raises:
        ExportError: the inputs do not fit, the exporter failed, or the export does not match.
        MissingDependency: torch is not installed.
    """
    torch_package("Exporting a torch module")
    inputs = named_inputs(module, example_inputs)
    module = float_module(module)
    inputs = {
        name: _traceable(_float32(value), (dynamic_shapes or {}).get(name, {}))
        for name, value in inputs.items()
    }
    with evaluation_mode(module), fresh_folder(out, overwrite=overwrite) as folder:
        names = output_names or _output_names(module, inputs)
        model = trace_module(
            module, inputs, dynamic_shapes=dynamic_shapes, output_names=names, opset=opset
        )
        path = save(model, folder / "model.onnx")
        with open_session(path) as session:
            verdict = check_module(session, module, inputs, dynamic_shapes or {})
        if companions is not None:
            copy_companions(companions, folder)
    out = Path(out)
    return Exported(
        folder=out,
        models={"model": out / "model.onnx"},
        task=task,
        source=f"torch module {type(module).__name__}",
        largest_error=verdict.largest,
        bound=verdict.bound,
        errors=verdict.errors,
        notes=("traced by torch.onnx.export", *verdict.notes),
    )


def check_module(
    session: Session, module: Any, inputs: Mapping[str, Any], dynamic_shapes: DynamicShapes
) -> Verdict:
    """Compare a traced model with its module on the example and on inputs of other sizes.

    Args:
        session: the model; its inputs are named as ``inputs``, its outputs come in the order of
            the module's flattened outputs.
        module: in float32 and eval mode.
        inputs: example tensors by name.
        dynamic_shapes: which axes to vary.

    Raises:
        ExportError: they do not agree, see `onnxq.export.check.judge`.
    """
    trials = {"example": dict(inputs)}
    if any(dynamic_shapes.values()):
        for more in _OTHER_SIZES:
            resized = {
                name: _resized(value, dynamic_shapes.get(name, {}), more)
                for name, value in inputs.items()
            }
            trials[f"sizes + {more}"] = resized
    names = [spec.name for spec in session.outputs]
    return judge(
        _run(session, trials),
        lambda: _evaluate(module, trials, names),
        lambda: _evaluate(
            float_module(module, "float64"),
            {trial: {k: _doubled(v) for k, v in given.items()} for trial, given in trials.items()},
            names,
        ),
        bound=rounding_bound_of_module(module),
        source=f"the torch module {type(module).__name__}",
    )


def _run(session: Session, trials: Mapping[str, Mapping[str, Any]]) -> Outputs:
    taken = {spec.name for spec in session.inputs}
    outputs: Outputs = {}
    for trial, given in trials.items():
        feeds = {name: value.numpy() for name, value in given.items() if name in taken}
        try:
            results = session.run(feeds)
        except OnnxqError as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
            raise ExportError(
                f"The export does not run on inputs of shapes {shapes} ({trial}): {error}. When "
                "the module fixes the size of an axis, leave that axis out of dynamic_shapes."
            ) from error
        outputs.update({f"{name} of {trial}": array for name, array in results.items()})
    return outputs


def _evaluate(
    module: Any, trials: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> Outputs:
    outputs: Outputs = {}
    for trial, given in trials.items():
        leaves = _leaves(module, given)
        for name, leaf in zip(names, leaves, strict=True):
            outputs[f"{name} of {trial}"] = np.asarray(leaf.detach().numpy())
    return outputs


def _leaves(module: Any, inputs: Mapping[str, Any]) -> list[Any]:
    """The tensors a module returns, flattened as the exporter flattens them."""
    import torch

    with torch.no_grad():
        outputs = module(**inputs)
    leaves, _ = torch.utils._pytree.tree_flatten(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _output_names(module: Any, inputs: Mapping[str, Any]) -> list[str]:
    """Keys of a dictionary of tensors; otherwise ``output``, or ``output_0`` and so on."""
    import torch

    with torch.no_grad():
        outputs = module(**inputs)
    if isinstance(outputs, Mapping):
        keys = [key for key, value in outputs.items() if isinstance(value, torch.Tensor)]
        leaves, _ = torch.utils._pytree.tree_flatten(outputs)
        if len(keys) == len(leaves):
            return [str(key) for key in keys]
    leaves, _ = torch.utils._pytree.tree_flatten(outputs)
    count = sum(isinstance(leaf, torch.Tensor) for leaf in leaves)
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def _resized(value: Any, axes: Mapping[int, str], more: int) -> Any:
    """The tensor with each dynamic axis longer by ``more``, its entries repeated in order."""
    import torch

    for axis in axes:
        size = value.shape[axis]
        value = value.index_select(axis, torch.arange(size + more) % max(size, 1))
    return value


def _traceable(value: Any, axes: Mapping[int, str]) -> Any:
    """The tensor with no dynamic axis of size 1, which torch would take for a constant."""
    for axis in axes:
        if axis < value.dim() and value.shape[axis] == 1:
            value = value.repeat_interleave(2, axis)
    return value


def _float32(value: Any) -> Any:
    value = value.detach().cpu()
    return value.float() if value.is_floating_point() else value


def _doubled(value: Any) -> Any:
    return value.double() if value.is_floating_point() else value
