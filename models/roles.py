"""Where the files of a model of several parts lie: an encoder and a decoder, three parts of OCR."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from onnxq.errors import ModelLoadError
from onnxq.graph.reading import find_model_file
from onnxq.runtime.cache import cache_folder

__all__ = ["role_files", "task_folder"]


def task_folder(name: str) -> Path:
    """Folder in the cache where the float model of a task is built and kept."""
    folder = cache_folder() / "tasks" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def role_files(model: Path, roles: Collection[str]) -> dict[str, Path]:
    """The file for each role: ``<role>.onnx``, or the model in the folder ``<role>``.

    Args:
        model: a folder; for a single role also the file, or the folder of one model.
        roles: names of the parts.

    Raises:
        ModelLoadError: a part is not there.
    """
    found = {role: _part(model, role) for role in roles}
    if len(found) == 1 and None in found.values():
        return dict.fromkeys(found, find_model_file(model))
    missing = [role for role, path in found.items() if path is None]
    if missing:
        raise ModelLoadError(
            f"{model} holds no {missing[0]}.onnx and no folder {missing[0]} with a model: a folder "
            f"with a file or a folder for each of {', '.join(roles)} is needed."
        )
    return {role: path for role, path in found.items() if path is not None}


def _part(model: Path, role: str) -> Path | None:
    file, folder = model / f"{role}.onnx", model / role
    if file.is_file():
        return file
    return find_model_file(folder) if folder.is_dir() else None
