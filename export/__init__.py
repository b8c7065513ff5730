"""Models in: from torch, Hugging Face, GGUF and ONNX, each checked against where it came from.

Artifacts out: `onnxq.export.artifact`. torch, transformers and the runtimes are imported by the
functions that need them.
"""

from __future__ import annotations

from onnxq.export.dispatch import export_model
from onnxq.export.exported import Exported
from onnxq.export.from_gguf import from_gguf
from onnxq.export.from_hf import from_hf
from onnxq.export.from_onnx import from_onnx
from onnxq.export.from_torch import from_torch
from onnxq.export.genai import copy_companions
from onnxq.export.tasks import TASKS

__all__ = [
    "TASKS",
    "Exported",
    "copy_companions",
    "export_model",
    "from_gguf",
    "from_hf",
    "from_onnx",
    "from_torch",
]
