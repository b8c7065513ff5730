"""How codes are chosen for a format, given a weight and statistics of what it multiplies."""

from onnxq.solvers.nearest import Search, nearest

__all__ = ["Search", "nearest"]
