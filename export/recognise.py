"""What a folder of ONNX files holds: which models in which roles, who wrote them, and for what."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq.errors import ExportError
from onnxq.export.genai import is_companion, read_json
from onnxq.export.tasks import task_of_architecture

__all__ = ["OnnxFolder", "producer_of", "recognise"]

_ROLES = {
    "encoder": ("encoder.onnx", "encoder_model.onnx"),
    "decoder": ("decoder.onnx", "decoder_model_merged.onnx", "decoder_model.onnx"),
    "decoder with past": ("decoder_with_past.onnx", "decoder_with_past_model.onnx"),
    "model": ("model.onnx",),
}
"""File names of genai's builder, optimum and others by role; the first that exists is taken."""

_VARIANTS = ("_fp16", "_q4", "_q4f16", "_int8", "_uint8", "_quantized", "_bnb4", "_opt")
"""Endings by which exporters mark another version of a model that lies beside it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxFolder:
    """A model as others wrote it.

    Attributes:
        folder: where it lies.
        models: ONNX files by role.
        task: what its configuration says it is for; ``unknown`` when nothing does.
        companions: tokenizer and configuration files beside it.
        ignored: other versions of the same models, left alone.
    """

    folder: Path
    models: dict[str, Path]
    task: str
    companions: tuple[Path, ...]
    ignored: tuple[Path, ...] = ()


def recognise(source: str | Path) -> OnnxFolder:
    """Find the models of a file or folder.

    Args:
        source: an ``.onnx`` file, or a folder with one model or several that belong together
            (its ``onnx`` subfolder when the models lie there).

    Raises:
        ExportError: there is no such path, no model in it, or several whose roles are unclear.
    """
    path = Path(source)
    if not path.exists():
        raise ExportError(f"There is no file or folder {str(path)!r}: check the path.")
    if path.is_file():
        return _described(path.parent, {"model": path}, ())
    inner = path / "onnx"
    folder = inner if not any(path.glob("*.onnx")) and inner.is_dir() else path
    files = sorted(folder.glob("*.onnx"))
    if not files:
        raise ExportError(
            f"The folder {str(path)!r} holds no .onnx file: give the folder that the exporter "
            "wrote. A Hugging Face checkpoint is exported with from_hf."
        )
    models = _from_genai_config(folder) or _by_role(folder, files)
    ignored = tuple(file for file in files if file not in models.values())
    return _described(folder, models, ignored)


def _described(folder: Path, models: dict[str, Path], ignored: tuple[Path, ...]) -> OnnxFolder:
    homes = {folder, folder.parent} if folder.name == "onnx" else {folder}
    companions = tuple(
        sorted(file for home in homes for file in home.iterdir() if is_companion(file))
    )
    return OnnxFolder(
        folder=folder,
        models=models,
        task=_task(companions, models),
        companions=companions,
        ignored=ignored,
    )


def _from_genai_config(folder: Path) -> dict[str, Path]:
    """The models that ``genai_config.json`` names, by its own roles."""
    path = folder / "genai_config.json"
    if not path.is_file():
        return {}
    sections = read_json(path).get("model", {})
    models: dict[str, Path] = {}
    for role, section in sections.items():
        if not isinstance(section, dict) or not isinstance(section.get("filename"), str):
            continue
        file = folder / section["filename"]
        if not file.is_file():
            raise ExportError(
                f"{str(path)!r} names the model {section['filename']!r}, which is not there. "
                "Fetch the folder again."
            )
        models[role] = file
    return {"model": models["decoder"]} if list(models) == ["decoder"] else models


def _by_role(folder: Path, files: list[Path]) -> dict[str, Path]:
    names = {file.name: file for file in files}
    models: dict[str, Path] = {}
    for role, candidates in _ROLES.items():
        found = [name for name in candidates if name in names]
        if found:
            models[role] = names[found[0]]
    if "decoder" in models and "merged" in models["decoder"].name:
        models.pop("decoder with past", None)
    if models:
        return models
    plain = [file for file in files if not file.stem.endswith(_VARIANTS)]
    if len(plain) == 1:
        return {"model": plain[0]}
    listed = ", ".join(file.name for file in files)
    raise ExportError(
        f"The folder {str(folder)!r} holds several models whose roles are unclear: {listed}. "
        "Give the path of one file."
    )


def _task(companions: tuple[Path, ...], models: dict[str, Path]) -> str:
    for file in companions:
        if file.name == "config.json":
            names: list[Any] = read_json(file).get("architectures") or [""]
            task = task_of_architecture(str(names[0]))
            if task is not None:
                return task
    if any(file.name == "genai_config.json" for file in companions):
        return "automatic-speech-recognition" if "encoder" in models else "text-generation"
    return "unknown"


def producer_of(model: ir.Model) -> str:
    """Name the exporter of a model by the marks that it leaves."""
    name = model.producer_name or ""
    version = f" {model.producer_version}" if model.producer_version else ""
    if name == "pytorch":
        traced = any("pkg.torch.onnx.fx_node" in node.metadata_props for node in model.graph)
        return f"torch{version}, {'dynamo' if traced else 'TorchScript'} exporter"
    if "paddle" in f"{name} {model.graph.name} {model.doc_string}".lower():
        return f"Paddle2ONNX{version}"
    if name == "onnx.quantize":
        return f"onnxruntime.quantization{version}"
    return f"{name}{version}" if name else "an exporter that left no name"
