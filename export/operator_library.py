"""The library of operators beside a model that uses them, for runtimes that onnxq does not start.

A model with operators of domain ``onnxq`` runs anywhere by its functions. With the library in the
folder, and named in ``genai_config.json``, onnxruntime-genai loads the kernels from there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx_ir as ir

from onnxq.custom_ops.catalog import has_kernels
from onnxq.errors import OnnxqError
from onnxq.export.genai import read_json
from onnxq.graph.walk import walk_nodes
from onnxq.runtime import ops_library

__all__ = ["bundle_library"]

_CONFIG = "genai_config.json"
_KEY = "custom_ops_library"


def bundle_library(model: ir.Model, folder: Path) -> str:
    """Put the library of operators beside a model, where it has kernels for it.

    Args:
        model: the model in the folder.
        folder: where it is; a ``genai_config.json`` there is made to name the library.

    Returns:
        What was done, as a clause for the report.
    """
    used = sorted({node.op_type for _, node in walk_nodes(model) if has_kernels(node)})
    if not used:
        return "not needed"
    try:
        library = Path(ops_library())
    except OnnxqError:
        return f"not built in this installation: functions stand for {', '.join(used)}"
    shutil.copyfile(library, folder / library.name)
    config = folder / _CONFIG
    if config.exists():
        settings = read_json(config)
        for part in settings.get("model", {}).values():
            if isinstance(part, dict) and "filename" in part:
                part.setdefault("session_options", {})[_KEY] = library.name
        config.write_text(json.dumps(settings, indent=4), encoding="utf-8")
    return f"{library.name} holds the kernels of {', '.join(used)}"
