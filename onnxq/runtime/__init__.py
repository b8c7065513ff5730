"""ONNX Runtime, opened in one place: sessions, threads, and inputs to try a model."""

from __future__ import annotations

from onnxq.runtime.inputs import random_samples
from onnxq.runtime.operators import library_path
from onnxq.runtime.session import Session, TensorSpec, open_session

__all__ = ["Session", "TensorSpec", "library_path", "open_session", "random_samples"]
