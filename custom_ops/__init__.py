"""Operators that no runtime ships: meaning, reference, kernels; one folder each.

`library_path` is the shared library with their kernels, for a session that onnxq does not open::

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(onnxq.custom_ops.library_path()))
"""

from __future__ import annotations

from onnxq.runtime.operators import library_path

__all__ = ["library_path"]
