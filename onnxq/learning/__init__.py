"""Learning: sub-graphs as differentiable torch functions, and what is trained through them.

The only room below `onnxq.export` that works with torch. Nothing imports it at start-up: a pass
that learns imports it inside the function that needs it.

Raises:
    MissingDependency: torch is not installed.
"""

from __future__ import annotations

from onnxq.errors import MissingDependency

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingDependency("torch", "torch", "Learning transforms and rounding") from error

from onnxq.learning.torch_graph import TorchGraph

__all__ = ["TorchGraph"]
