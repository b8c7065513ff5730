"""One door for every kind of source: what it is decides how it is exported."""

from __future__ import annotations

from pathlib import Path

from onnxq.errors import ExportError
from onnxq.export.exported import Exported
from onnxq.export.from_gguf import from_gguf
from onnxq.export.from_hf import from_hf
from onnxq.export.from_onnx import from_onnx

__all__ = ["export_model"]

_CHECKPOINTS = {".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pkl"}


def export_model(
    source: str | Path, out: str | Path, *, task: str = "auto", overwrite: bool = False
) -> Exported:
    """Export a GGUF file, an ONNX file or folder, a Hugging Face folder or a hub id.

    Args:
        source: what to export.
        out: folder to write.
        task: see `onnxq.export.from_hf`; GGUF files are language models, and ONNX files are taken
            as they are, so both need none.
        overwrite: replace a model folder that is there.

    Raises:
        ExportError: the source is none of these, or cannot be exported.
        MissingDependency: a package that this kind of source needs is not installed.
    """
    path = Path(source)
    if path.is_file():
        return _export_file(path, out, overwrite)
    if path.is_dir():
        if (path / "config.json").is_file() and _has_weights(path):
            return from_hf(path, out, task=task, overwrite=overwrite)
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return from_gguf(files[0], out, overwrite=overwrite)
        if any(path.glob("*.onnx")) or any(path.glob("onnx/*.onnx")):
            return from_onnx(path, out, overwrite=overwrite)
        if len(files) > 1:
            listed = ", ".join(file.name for file in files)
            raise ExportError(
                f"The folder {str(path)!r} holds several GGUF files: {listed}. Give one of them."
            )
    return from_hf(source, out, task=task, overwrite=overwrite)


def _export_file(path: Path, out: str | Path, overwrite: bool) -> Exported:
    suffix = path.suffix.lower()
    if suffix == ".gguf" or _starts_with(path, b"GGUF"):
        return from_gguf(path, out, overwrite=overwrite)
    if suffix in _CHECKPOINTS:
        raise ExportError(
            f"{str(path)!r} holds weights without the network that they belong to. Give the "
            "Hugging Face folder it comes from, or build the module in Python and export it with "
            "onnxq.export.from_torch."
        )
    return from_onnx(path, out, overwrite=overwrite)


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def _starts_with(path: Path, mark: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(mark)) == mark
