"""Models in ONNX Runtime's own format (.ort), which its builds for phones read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from onnxq.runtime.session import open_session

__all__ = ["Style", "write_ort_format"]

Style = Literal["fixed", "runtime"]
"""``fixed``: optimized for the CPU here and now; ``runtime``: Q and DQ kept for whichever provider
the device has, and the CPU's fusions recorded to be applied there."""


def write_ort_format(source: Path, target: Path, style: Style) -> None:
    """Write a model as ``.ort``, weights within.

    Args:
        source: an ``.onnx`` file.
        target: the file to write.
        style: what optimizations it holds.

    Raises:
        UnsupportedGraph: the runtime does not take the model.
    """

    def configure(options: Any) -> None:
        import onnxruntime

        levels = onnxruntime.GraphOptimizationLevel
        # Above "extended" there are layouts of this very processor.
        options.graph_optimization_level = (
            levels.ORT_ENABLE_EXTENDED if style == "fixed" else levels.ORT_ENABLE_BASIC
        )
        options.optimized_model_filepath = str(target)
        options.add_session_config_entry("session.save_model_format", "ORT")
        if style == "runtime":
            key = "optimization.minimal_build_optimizations"
            options.add_session_config_entry(key, "save")

    open_session(source, custom_ops=False, configure=configure).close()
