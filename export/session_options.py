"""``session_options.json``: how ONNX Runtime is to open a built model, and why, for any language.

::

    {"graph_optimization_level": "all",
     "config": {"session.qdq_matmulnbits_accuracy_level": "4"},
     "custom_ops_library": "libonnxq_ops.so",
     "reasons": {"session.qdq_matmulnbits_accuracy_level": "..."}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxq.export.genai import read_json
from onnxq.runtime import Session, open_session

__all__ = ["OPTIONS", "name_providers", "open_built", "write_options"]

OPTIONS = "session_options.json"


def write_options(folder: Path, config: Mapping[str, tuple[str, str]], library: str | None) -> None:
    """Write the file.

    Args:
        folder: of the model.
        config: (value, reason) by key of the session configuration.
        library: file name of the library of operators in the folder; None when none is needed.
    """
    content = {
        "graph_optimization_level": "all",
        "config": {key: value for key, (value, _) in config.items()},
        "custom_ops_library": library,
        "reasons": {key: reason for key, (_, reason) in config.items()},
    }
    (folder / OPTIONS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def name_providers(folder: Path, providers: Sequence[str]) -> None:
    """Add the execution providers, the preferred one first, to options that were written."""
    content = {**read_json(folder / OPTIONS), "providers": list(providers)}
    (folder / OPTIONS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def open_built(folder: str | Path, *, threads: int | None = None) -> Session:
    """Open the model of a built folder on the CPU with the options beside it, and nothing else.

    Raises:
        ExportError: the options are missing or cannot be read.
        UnsupportedGraph: the runtime does not take the model.
    """
    folder = Path(folder)
    options = read_json(folder / OPTIONS)

    def configure(session_options: Any) -> None:
        for key, value in options.get("config", {}).items():
            session_options.add_session_config_entry(key, value)
        library = options.get("custom_ops_library")
        if library:
            session_options.register_custom_ops_library(str(folder / library))

    model = folder / "model.onnx"
    return open_session(model, threads=threads, custom_ops=False, configure=configure)
