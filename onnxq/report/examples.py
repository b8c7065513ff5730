"""Outputs of two models side by side, as a reader can judge them: text, classes, or numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxq.errors import MissingDependency
from onnxq.evaluate.deviation import DeviationSums
from onnxq.evaluate.feeds import feeds_of
from onnxq.graph.reading import find_model_file
from onnxq.model_pair import ModelPair
from onnxq.runtime import open_session
from onnxq.runtime.generation import TextGenerator, is_text_generation

__all__ = ["output_examples"]

PROMPTS = (
    "The capital of France is",
    "In the morning the ship left the harbour and",
    "Water boils when",
)
_NEW_TOKENS = 24
_CLASSES = 5
_NUMBERS = 6
_CLOSE_DB = 30.0
_MANY = 4
"""Outputs of which the first is shown alone: the others are caches."""

Array = np.ndarray[Any, Any]


def output_examples(pair: ModelPair, labels: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A few examples, each with what went in and what came out of both models.

    Args:
        pair: both models, and inputs.
        labels: names of classes by number.

    Returns:
        Rows with ``input``, ``original``, ``quantized`` (texts) and ``same``: of folders for text
        generation what they write; else of each output the likeliest classes or the first numbers.

    Raises:
        OnnxqError: a model does not run.
    """
    if is_text_generation(pair.original) and is_text_generation(pair.quantized):
        try:
            return _texts(pair)
        except MissingDependency:
            return _values(pair, labels)
    return _values(pair, labels)


def _texts(pair: ModelPair) -> list[dict[str, Any]]:
    written = []
    for folder in (pair.original, pair.quantized):
        with TextGenerator(folder) as generator:
            room = generator.context - _NEW_TOKENS
            written.append(
                [
                    generator.decode(
                        generator.generate(generator.encode(prompt)[:room], _NEW_TOKENS).ids
                    )
                    for prompt in PROMPTS
                ]
            )
    return [
        {"input": prompt, "original": first, "quantized": second, "same": first == second}
        for prompt, first, second in zip(PROMPTS, *written, strict=True)
    ]


def _values(pair: ModelPair, labels: Sequence[str]) -> list[dict[str, Any]]:
    runs: list[list[Mapping[str, Array]]] = []
    for path in (pair.original, pair.quantized):
        with open_session(find_model_file(path)) as session:
            names = [spec.name for spec in session.outputs]
            shown = names if len(names) < _MANY else names[:1]
            runs.append(
                [
                    session.run(feeds_of(session, sample, number), shown)
                    for number, sample in enumerate(pair.samples[:3])
                ]
            )
    rows = []
    for number, (first, second) in enumerate(zip(*runs, strict=True)):
        for name, ours in first.items():
            theirs = second[name]
            is_classes = _are_classes(ours)
            texts = [_classes(a, labels) if is_classes else _numbers(a) for a in (ours, theirs)]
            decibels = _decibels(ours, theirs)
            if decibels is not None and not is_classes:
                texts[1] += " · equal" if decibels == math.inf else f" · {decibels:.1f} dB"
            rows.append(
                {
                    "input": f"sample {number + 1}: {name} {list(ours.shape)}",
                    "original": texts[0],
                    "quantized": texts[1],
                    "same": _same(ours, theirs, is_classes),
                }
            )
    return rows


def _are_classes(array: Array) -> bool:
    """One row of at least ten scores is taken for those of classes."""
    return array.dtype.kind == "f" and array.size == array.shape[-1] >= 10 and array.ndim <= 2


def _classes(array: Array, labels: Sequence[str]) -> str:
    scores = array.reshape(-1).astype(np.float64)
    if not (scores.min() >= 0.0 and abs(scores.sum() - 1.0) < 1e-3):
        scores = np.exp(scores - scores.max())
        scores /= scores.sum()
    best = np.argsort(-scores, kind="stable")[:_CLASSES]
    return ", ".join(
        f"{labels[index] if index < len(labels) else f'class {index}'} {scores[index]:.1%}"
        for index in best
    )


def _numbers(array: Array) -> str:
    flat = array.reshape(-1)
    shown = ", ".join(
        f"{value:.4g}" if array.dtype.kind in "fV" else str(value) for value in flat[:_NUMBERS]
    )
    return shown + (", …" if flat.size > _NUMBERS else "")


def _same(first: Array, second: Array, is_classes: bool) -> bool:
    """Whether a reader would call them the same: the first class, else numbers to 30 dB."""
    if first.shape != second.shape:
        return False
    if is_classes:
        return bool(first.argmax() == second.argmax())
    decibels = _decibels(first, second)
    return bool(np.array_equal(first, second)) if decibels is None else decibels >= _CLOSE_DB


def _decibels(first: Array, second: Array) -> float | None:
    """The SQNR of floats of one shape; None of anything else."""
    if first.dtype.kind not in "fV" or first.shape != second.shape:
        return None
    sums = DeviationSums()
    sums.add(first, second)
    return sums.result().sqnr_db
