"""From a Hugging Face checkpoint, by task.

``text-generation`` and ``automatic-speech-recognition`` go through onnxruntime-genai's model
builder (key/value caches); the tasks that run a network once are traced by torch.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

from onnxq.errors import ExportError
from onnxq.export.exported import Exported, refuse_occupied
from onnxq.export.from_torch import from_torch
from onnxq.export.genai import read_json
from onnxq.export.hf_folder import (
    load_module,
    read_config,
    require_files,
    resolve_folder,
    transformers_package,
)
from onnxq.export.speech import export_speech
from onnxq.export.tasks import TASKS, task_of_architecture
from onnxq.export.text_generation import export_decoder

__all__ = ["TASKS", "detect_task", "from_hf"]


@dataclasses.dataclass(frozen=True)
class _Traced:
    """A task whose network runs once: the class to load, and the output to keep."""

    auto_class: str
    output: str


_TRACED = {
    "feature-extraction": _Traced("AutoModel", "last_hidden_state"),
    "fill-mask": _Traced("AutoModelForMaskedLM", "logits"),
    "image-classification": _Traced("AutoModelForImageClassification", "logits"),
    "text-classification": _Traced("AutoModelForSequenceClassification", "logits"),
    "token-classification": _Traced("AutoModelForTokenClassification", "logits"),
}

_GENERATING = ("automatic-speech-recognition", "text-generation")
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_DEFAULT_IMAGE_SIZE = 224


def from_hf(
    source: str | Path, out: str | Path, *, task: str = "auto", overwrite: bool = False
) -> Exported:
    """Export a Hugging Face checkpoint in float32 and compare it with transformers.

    Tokenizer, processor and configuration files are copied along. Inputs and outputs:
    text tasks take int64 ``input_ids``, ``attention_mask`` (and ``token_type_ids`` when the model
    has them), [batch, sequence], and give ``last_hidden_state`` [batch, sequence, hidden] or
    ``logits``; image classification takes float32 ``pixel_values`` [batch, channels, height,
    width] at the size of the checkpoint; for the two generating tasks see
    `onnxq.export.check.check_decoder` and `onnxq.export.speech.check_speech`.

    Args:
        source: a folder with ``config.json`` and weights, or a hub id ``owner/name``.
        out: folder to write.
        task: one of `TASKS`, or ``auto`` to go by the checkpoint's architecture.
        overwrite: replace a model folder that is there.

    Raises:
        ExportError: no such checkpoint or task, an architecture that is not supported, the
            output exists, or the export does not match.
        MissingDependency: a package that the task needs is not installed.
    """
    transformers_package("Exporting a Hugging Face checkpoint")
    if task != "auto" and task not in TASKS:
        raise ExportError(f"There is no task {task!r}: choose one of {', '.join(TASKS)}, or auto.")
    refuse_occupied(out, overwrite)
    folder = resolve_folder(source)
    config = read_config(folder)
    chosen = detect_task(config, folder) if task == "auto" else task
    require_files(folder, tokenizer=chosen in _GENERATING)
    if chosen == "text-generation":
        return export_decoder(folder, out, source=str(source), overwrite=overwrite)
    if chosen == "automatic-speech-recognition":
        return export_speech(folder, out, source=str(source), overwrite=overwrite)
    return _export_traced(folder, out, chosen, str(source), overwrite)


def detect_task(config: dict[str, Any], folder: Path) -> str:
    """The task of a checkpoint by the architecture that its configuration names.

    Raises:
        ExportError: it names none, or one of no supported task.
    """
    architecture = str((config.get("architectures") or [""])[0])
    task = task_of_architecture(architecture)
    if task is not None:
        return task
    said = f"the architecture {architecture!r}" if architecture else "no architecture"
    raise ExportError(
        f"The config.json of {str(folder)!r} names {said}, which tells no task. Give the task, "
        f"one of {', '.join(TASKS)}; other modules are exported with from_torch."
    )


def _export_traced(
    folder: Path, out: str | Path, task: str, source: str, overwrite: bool
) -> Exported:
    traced = _TRACED[task]
    module = load_module(traced.auto_class, folder)
    inputs, axes = _example(module, folder)
    exported = from_torch(
        _single_output(module, tuple(inputs), traced.output),
        inputs,
        out,
        dynamic_shapes=axes,
        output_names=[traced.output],
        task=task,
        companions=folder,
        overwrite=overwrite,
    )
    return dataclasses.replace(exported, source=f"{type(module).__name__} of {source}")


def _example(module: Any, folder: Path) -> tuple[dict[str, Any], dict[str, dict[int, str]]]:
    """Example inputs of a module, batch of two, and their dynamic axes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    if module.main_input_name == "pixel_values":
        config = module.config
        size = _image_size(config, folder)
        shape = (2, int(getattr(config, "num_channels", 3)), *size)
        pixels = torch.randn(shape, generator=generator)
        return {"pixel_values": pixels}, {"pixel_values": {0: "batch"}}
    if module.main_input_name != "input_ids":
        raise ExportError(
            f"{type(module).__name__} of {str(folder)!r} takes {module.main_input_name!r}, and "
            "only text and image models are traced. Wrap it and use from_torch."
        )
    vocabulary = int(module.config.vocab_size)
    ids = torch.randint(0, vocabulary, (2, 8), generator=generator)
    mask = torch.ones_like(ids)
    # A padded row, so that the mask is traced as something that matters, and checked.
    mask[1, 5:] = 0
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    taken = inspect.signature(module.forward).parameters
    inputs = {name: known[name] for name in _TEXT_INPUTS if name in taken}
    if int(getattr(module.config, "type_vocab_size", 0) or 0) < 2:
        inputs.pop("token_type_ids", None)
    return inputs, {name: {0: "batch", 1: "sequence"} for name in inputs}


def _image_size(config: Any, folder: Path) -> tuple[int, int]:
    """(height, width) the checkpoint was trained at: its processor's, or its configuration's."""
    size: Any = None
    processor = folder / "preprocessor_config.json"
    if processor.is_file():
        settings = read_json(processor)
        cropped = settings.get("crop_size") if settings.get("do_center_crop", True) else None
        size = cropped or settings.get("size")
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        size = (size.get("height", edge), size.get("width", edge))
    size = size or getattr(config, "image_size", None) or _DEFAULT_IMAGE_SIZE
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    if not isinstance(height, int) or not isinstance(width, int):
        raise ExportError(
            f"The size of the images of {str(folder)!r} is not clear ({height} × {width}): write "
            "height and width into its preprocessor_config.json, or use from_torch."
        )
    return height, width


def _single_output(module: Any, names: tuple[str, ...], output: str) -> Any:
    """Wrap a module so that it takes the named inputs and returns one tensor."""
    import torch

    class SingleOutput(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, **inputs: Any) -> Any:
            return getattr(self.network(**inputs), output)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in ("self", *names)
    ]
    # The exporter and the check read the names of the inputs from the signature.
    forward: Any = SingleOutput.forward
    forward.__signature__ = inspect.Signature(parameters)
    return SingleOutput()
