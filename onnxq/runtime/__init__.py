"""ONNX Runtime, opened in one place: sessions, threads, and inputs to try a model."""

from __future__ import annotations

from onnxq.runtime.inputs import random_samples
from onnxq.runtime.operators import ops_library
from onnxq.runtime.session import Session, TensorSpec, open_session

__all__ = ["Session", "TensorSpec", "open_session", "ops_library", "random_samples"]
