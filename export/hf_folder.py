"""Hugging Face folders: found, read quietly in float32, refused with sentences."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxq.errors import ExportError, MissingDependency
from onnxq.export.genai import read_json

__all__ = [
    "load_module",
    "quiet_transformers",
    "read_config",
    "require_files",
    "resolve_folder",
    "transformers_package",
]


def transformers_package(purpose: str) -> Any:
    """Import transformers (with torch) or raise `MissingDependency` naming ``purpose``."""
    try:
        import torch  # noqa: F401 - transformers imports without it, and then has no models
        import transformers
    except ImportError as error:
        package = "torch" if error.name == "torch" else "transformers"
        raise MissingDependency(package, "hf", purpose) from error
    return transformers


def resolve_folder(source: str | Path) -> Path:
    """Return the folder of a checkpoint: the folder itself, or a downloaded hub repository.

    Raises:
        ExportError: neither a folder nor a hub id, or the hub cannot be reached.
        MissingDependency: huggingface_hub is not installed, and a download is needed.
    """
    path = Path(source)
    if path.is_dir():
        return path
    name = str(source)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name[0] in "./":
        raise ExportError(
            f"{name!r} is neither a folder nor a hub id of the form 'owner/name': give the folder "
            "that holds config.json."
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingDependency("huggingface_hub", "hf", f"Downloading {name}") from error
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise ExportError(
            f"There is no folder {name!r}, and it cannot be fetched from the hub: "
            f"{_first_line(error)}. Check the name and the network, or give a local folder."
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return ``config.json`` of a checkpoint.

    Raises:
        ExportError: there is none, or it is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ExportError(
            f"The folder {str(folder)!r} has no config.json, so it is not a Hugging Face "
            "checkpoint. Give the folder that save_pretrained wrote, or use from_torch."
        )
    return read_json(path)


def require_files(folder: Path, *, tokenizer: bool) -> None:
    """Raise `ExportError` when a checkpoint has no weights, or lacks a tokenizer that is needed."""
    weights = ("*.safetensors", "pytorch_model*.bin")
    if not any(any(folder.glob(pattern)) for pattern in weights):
        raise ExportError(
            f"The folder {str(folder)!r} has a config.json and no weights ({' or '.join(weights)})."
            " Fetch the whole checkpoint."
        )
    vocabularies = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
    if tokenizer and not any(any(folder.glob(pattern)) for pattern in vocabularies):
        raise ExportError(
            f"The folder {str(folder)!r} has no tokenizer, and the exported folder could not "
            "generate text without one. Save the tokenizer beside the model."
        )


def load_module(auto_class: str, folder: Path) -> Any:
    """Load a checkpoint in float32 and eval mode, without progress bars.

    Args:
        auto_class: name of a class of transformers, e.g. ``AutoModelForCausalLM``.
        folder: a local checkpoint.

    Raises:
        ExportError: transformers does not know the architecture, or a weight is missing.
        MissingDependency: transformers or torch is not installed.
    """
    transformers = transformers_package("Reading a Hugging Face checkpoint")
    import torch

    with quiet_transformers():
        try:
            module, loading = getattr(transformers, auto_class).from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        except Exception as error:
            raise ExportError(
                f"transformers cannot load {str(folder)!r} as {auto_class}: {_first_line(error)}. "
                "Check the task, and that the checkpoint is whole."
            ) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ExportError(
            f"The checkpoint {str(folder)!r} has no value for {len(missing)} weights of "
            f"{type(module).__name__}, first {missing[0]!r}: they would be random. Give the task "
            "it was trained for."
        )
    return module.eval()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers inside the block."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
