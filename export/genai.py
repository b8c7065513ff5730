"""Folders for onnxruntime-genai: written by its model builder, and carried along.

They are run by `onnxq.runtime.generation`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxq.errors import ExportError, MissingDependency

__all__ = [
    "UnknownArchitecture",
    "build_with_genai",
    "copy_companions",
    "is_companion",
    "read_json",
    "require_genai",
]

_COMPANIONS = (
    "genai_config.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "normalizer.json",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "audio_processor_config.json",
    "LICENSE*",
    "NOTICE*",
)
_LOG_LINES = 15


class UnknownArchitecture(ExportError):
    """The model builder has no class for this architecture; tracing may still work."""


def build_with_genai(
    checkpoint: Path, folder: Path, *, models: Sequence[str] = ("model.onnx",)
) -> None:
    """Write models, ``genai_config.json`` and the tokenizer of a Hugging Face checkpoint, float32.

    onnxruntime-genai's model builder runs in a process of its own: it prints, changes
    ``sys.path``, and holds the weights several times over.

    Args:
        checkpoint: folder with ``config.json``, safetensors and a tokenizer.
        folder: existing folder to write into.
        models: the ONNX files that must be there afterwards.

    Raises:
        UnknownArchitecture: the builder does not know the architecture.
        ExportError: the builder failed; its last lines are in the message.
        MissingDependency: onnxruntime-genai is not installed.
    """
    require_genai("Exporting a decoder with a key/value cache")
    with tempfile.TemporaryDirectory(prefix="onnxq-genai-") as scratch:
        command = [
            sys.executable, "-m", "onnxruntime_genai.models.builder",
            "-m", checkpoint.name, "-i", str(checkpoint.resolve()), "-o", str(folder.resolve()),
            "-p", "fp32", "-e", "cpu", "-c", scratch, "--extra_options", "hf_token=false",
        ]  # fmt: skip
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        done = subprocess.run(
            command,
            cwd=scratch,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode != 0 or not all((folder / name).exists() for name in models):
        raise _builder_failure(checkpoint, done.stdout)


def _builder_failure(checkpoint: Path, log: str) -> ExportError:
    architecture = (read_json(checkpoint / "config.json").get("architectures") or ["?"])[0]
    if "is not currently supported" in log:
        return UnknownArchitecture(
            f"onnxruntime-genai's model builder does not know the architecture {architecture!r} of "
            f"{str(checkpoint)!r}. Upgrade onnxruntime-genai, or export the module without a "
            "key/value cache through from_torch."
        )
    lines = log.strip().splitlines() or ["it said nothing"]
    tail = "\n".join(lines[-_LOG_LINES:])
    return ExportError(
        f"onnxruntime-genai's model builder failed on {str(checkpoint)!r} ({architecture}): "
        f"{lines[-1]}\nIts last lines:\n{tail}"
    )


def require_genai(purpose: str) -> Any:
    """Import onnxruntime_genai or raise `MissingDependency` naming ``purpose``."""
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise MissingDependency("onnxruntime-genai", "genai", purpose) from error
    return onnxruntime_genai


def is_companion(path: Path) -> bool:
    """Whether a file beside a model is what a runtime needs besides it: tokenizer, configs."""
    return any(path.match(pattern) for pattern in _COMPANIONS)


def copy_companions(
    source: str | Path, destination: str | Path, *, renamed: Mapping[str, str] | None = None
) -> list[Path]:
    """Copy tokenizer, processor and configuration files from one model folder to another.

    Args:
        source: folder of the model they come with; a model file stands for its folder.
        destination: existing folder of the rewritten model.
        renamed: new file name of a model by its old one, when it changed; ``genai_config.json``
            is made to follow.

    Returns:
        The files written. Files of other kinds and model files are left behind; a file that the
        destination already has is not replaced.
    """
    source, destination = Path(source), Path(destination)
    if source.is_file():
        source = source.parent
    copied: list[Path] = []
    for path in sorted(source.iterdir()):
        target = destination / path.name
        if not path.is_file() or not is_companion(path) or target.exists():
            continue
        if path.name == "genai_config.json" and renamed:
            config = _with_filenames(read_json(path), renamed)
            target.write_text(json.dumps(config, indent=4), encoding="utf-8")
        else:
            shutil.copyfile(path, target)
        copied.append(target)
    return copied


def _with_filenames(node: Any, renamed: Mapping[str, str]) -> Any:
    """Replace the value of each ``filename`` key that was renamed."""
    if isinstance(node, dict):
        return {
            key: renamed.get(value, value)
            if key == "filename" and isinstance(value, str)
            else _with_filenames(value, renamed)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_with_filenames(item, renamed) for item in node]
    return node


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file, or raise `ExportError` when it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{str(path)!r} cannot be read as JSON ({error}). Fetch the model folder again."
        ) from error
    if not isinstance(content, dict):
        raise ExportError(f"{str(path)!r} is not a JSON object. Fetch the model folder again.")
    return content
