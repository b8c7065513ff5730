"""Rounding that is learned through a block: one file for each way to choose among grid points."""

from __future__ import annotations

from onnxq.learning.rounding.learning import RoundingResult, learn_rounding
from onnxq.learning.rounding.methods import METHODS, Method

__all__ = ["METHODS", "Method", "RoundingResult", "learn_rounding"]
