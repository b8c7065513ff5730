"""The quality and cost of models: perplexity, task metrics, comparison of two models, bench."""

from __future__ import annotations

from onnxq.evaluate.bench import Benchmark, TokenRates, bench_models, token_rates
from onnxq.evaluate.compare import Comparison, ValueComparison, compare_models
from onnxq.evaluate.latency import Latencies, Spread, latency

__all__ = [
    "Benchmark",
    "Comparison",
    "Latencies",
    "Spread",
    "TokenRates",
    "ValueComparison",
    "bench_models",
    "compare_models",
    "latency",
    "token_rates",
]
