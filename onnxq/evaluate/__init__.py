"""The quality and cost of models: perplexity, task metrics, comparison of two models, bench."""

from __future__ import annotations

from onnxq.evaluate.compare import Comparison, ValueComparison, compare_models

__all__ = ["Comparison", "ValueComparison", "compare_models"]
