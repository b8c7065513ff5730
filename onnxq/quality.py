"""The verb ``onnxq.evaluate``: what a model is worth, by one metric on one's own data, or by task.

Every metric has one row in `METRICS`; a task of `onnxq.models.registry` brings data and metrics of
its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import CalibrationError, UsageError
from onnxq.evaluate.losses import JUDGES
from onnxq.evaluate.pair import judge_pair
from onnxq.evaluate.text import text_perplexity
from onnxq.graph import load
from onnxq.graph.reading import find_model_file
from onnxq.passes.base import Progress, no_progress
from onnxq.runtime import open_session

__all__ = ["METRICS", "Evaluation", "evaluate"]

METRICS: Mapping[str, str] = {
    "perplexity": "text generation: exp of the mean loss on a text (--data a text file)",
    "similarity": "embeddings: cosine with the reference's vectors of the same inputs",
    "agreement": "classifiers: share of decisions that are the reference's, or the labels'",
    "detection": "detectors: overlap of boxes or masks with those of the reference",
    "reading": "OCR and other CTC recognizers: share of lines read as the reference reads them",
    "wer": "Whisper: word error rate (--data a folder of sound files, a .txt beside each)",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured.

    Attributes:
        metric: one of `METRICS`, or the name of a task.
        primary: name of the figure that decides.
        figures: all figures by name; None where one is not defined for these data.
        protocol: what was done, in a sentence.
    """

    metric: str
    primary: str
    figures: Mapping[str, float | int | str | None]
    protocol: str

    @property
    def value(self) -> float:
        """The figure that decides; NaN when it is not defined."""
        found = self.figures[self.primary]
        return math.nan if found is None else float(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**dataclasses.asdict(self), "figures": dict(self.figures)}


def evaluate(
    model: Any = None,
    *,
    metric: str | None = None,
    task: str | None = None,
    reference: Any = None,
    data: Any = None,
    tokenizer: str | Path | None = None,
    window: int = 512,
    windows: int = 16,
    limit: int | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> Evaluation:
    """Measure the quality of a model.

    Args:
        model: an ONNX file, a folder, or a model in memory; for a task or ``wer`` of several
            files the folder that holds ``<role>.onnx``, or ``<role>/model.onnx``, for each. With
            ``task`` it may be None: the float model of the task itself.
        metric: one of `METRICS`. None means perplexity, or the metric of ``task``.
        task: a name in `onnxq.models.registry.tasks`: its data and metrics on ``model``.
        reference: the model to agree with; for ``wer`` also measured when given. None with
            ``task`` means the float model of the task, built on first use and kept.
        data: for ``perplexity`` a text file or a text; for ``wer`` a folder of sound files with a
            transcript (.txt) beside each; otherwise inputs as in `onnxq.quantize`.
        tokenizer: ``tokenizer.json`` or its folder; the model's folder when None.
        window: tokens in a window of perplexity.
        windows: windows at most, from the end of the text.
        limit: samples or clips at most.
        progress: called with (what, done, total); total 0 means unknown.
        options: of the judge: ``output`` (all four), ``labels`` (an array, or a .npy or .txt file)
            and ``threshold`` of ``agreement``, ``threshold``, ``overlap`` and ``layout`` of
            ``detection``, ``blank`` of ``reading``.

    Raises:
        UsageError: arguments that do not go together, or one that is missing.
        OnnxqError: with a sentence that says what, where, and what to do next.
    """
    if task is not None:
        _refuse_given("a task has data and metrics of its own", metric=metric, data=data)
        return _by_task(task, model, reference, progress)
    chosen = metric or "perplexity"
    if chosen not in METRICS:
        raise UsageError(f"There is no metric {chosen!r}: choose one of {', '.join(METRICS)}.")
    _require(chosen, model=model, data=data)
    if chosen in JUDGES:
        samples = _inputs(model, data, tokenizer, limit)
        return _by_pair(chosen, model, reference, samples, options, progress)
    _refuse_given(f"it is no option of {chosen}", **options)
    if chosen == "wer":
        return _by_words(model, reference, Path(data), tokenizer, limit, progress)
    _refuse_given("perplexity is measured on one model", reference=reference)
    found = text_perplexity(
        model, text=data, tokenizer=tokenizer, window=window, windows=windows, progress=progress
    )
    return Evaluation(
        metric=chosen, primary=chosen, figures=dataclasses.asdict(found), protocol=str(found)
    )


def _refuse_given(reason: str, **arguments: Any) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise UsageError(f"Leave out {' and '.join(given)}: {reason}.")


def _require(metric: str, **arguments: Any) -> None:
    missing = [name for name, value in arguments.items() if value is None]
    if missing:
        raise UsageError(
            f"The metric {metric} needs {' and '.join(missing)} - {METRICS[metric]}. A task brings "
            "data of its own."
        )


def _inputs(
    model: Any, data: Any, tokenizer: str | Path | None, limit: int | None
) -> Iterable[Mapping[str, np.ndarray[Any, Any]]]:
    from onnxq.calibration import open_data, tokenizer_beside

    tokenizer = tokenizer or tokenizer_beside(model)
    return open_data(data, load(model), tokenizer=tokenizer, limit=limit)


def _by_pair(
    metric: str,
    model: Any,
    reference: Any,
    samples: Iterable[Mapping[str, np.ndarray[Any, Any]]],
    options: dict[str, Any],
    progress: Progress,
) -> Evaluation:
    """One of the metrics that look at the outputs of two models."""
    labels = options.get("labels")
    if labels is not None:
        options = {**options, "labels": _labels(labels)}
    elif reference is None:
        _require(metric, reference=None)
    try:
        judge = JUDGES[metric](**options)
    except TypeError as error:
        raise UsageError(f"The metric {metric} has no such option: {error}.") from None
    with contextlib.ExitStack() as stack:
        judged = stack.enter_context(open_session(_openable(model)))
        if reference is not None:
            source = stack.enter_context(open_session(_openable(reference)))
        else:
            source = judged
        figures = judge_pair(source, judged, samples, judge, progress=progress)
    if reference is None:
        figures = {name: figures[name] for name in ("accuracy", "decisions", "samples")}
        return Evaluation(
            metric=metric, primary="accuracy", figures=figures, protocol="against the labels"
        )
    return Evaluation(
        metric=metric,
        primary=judge.primary,
        figures=figures,
        protocol=f"against the reference, on {figures['samples']} samples",
    )


def _openable(model: Any) -> Any:
    """What a session opens: the file of a folder; a protobuf model as a graph."""
    if isinstance(model, (str, Path)):
        return find_model_file(Path(model))
    return model if isinstance(model, bytes) else load(model)


def _labels(given: Any) -> np.ndarray[Any, Any]:
    """Class numbers from an array, a .npy file, or a text file with one on a line."""
    if not isinstance(given, (str, Path)):
        return np.asarray(given, np.int64).reshape(-1)
    path = Path(given)
    try:
        raw = np.load(path) if path.suffix == ".npy" else np.loadtxt(path, ndmin=1)
        numbers = np.asarray(raw, np.int64).reshape(-1)
    except (OSError, ValueError) as error:
        raise CalibrationError(
            f"{str(path)!r} cannot be read as labels ({error}): give class numbers, as a .npy "
            "array or as text with one on a line."
        ) from error
    return numbers


def _by_words(
    model: Any,
    reference: Any,
    clips: Path,
    tokenizer: str | Path | None,
    limit: int | None,
    progress: Progress,
) -> Evaluation:
    from onnxq.models.word_errors import word_errors_of

    _require_folder(model)
    found = word_errors_of(Path(model), clips, tokenizer=tokenizer, limit=limit, progress=progress)
    figures: dict[str, float | int | str | None] = {**found.figures()}
    if reference is not None:
        _require_folder(reference)
        other = word_errors_of(
            Path(reference), clips, tokenizer=tokenizer, limit=limit, progress=progress
        )
        figures["reference_word_error_rate"] = other.errors.rate
        figures["texts_equal"] = found.texts == other.texts
    return Evaluation(
        metric="wer",
        primary="word_error_rate",
        figures=figures,
        protocol=f"greedy decoding of {len(found.texts)} clips of 30 seconds at most, words in "
        "lower case without marks",
    )


def _require_folder(model: Any) -> None:
    if not isinstance(model, (str, Path)) or not Path(model).is_dir():
        raise UsageError(
            "The metric wer needs the folder of a Whisper, as onnxq export writes it: encoder and "
            "decoder, tokenizer.json and generation_config.json."
        )


def _by_task(name: str, model: Any, reference: Any, progress: Progress) -> Evaluation:
    from onnxq.models.registry import task
    from onnxq.models.roles import role_files, task_folder

    job = task(name)
    progress(f"float model of {name}", 0, 1)
    source = job.built(task_folder(name))
    progress(f"float model of {name}", 1, 1)
    if reference is not None:
        source = role_files(Path(reference), source)
    judged = source if model is None else role_files(Path(model), source)
    progress(f"evaluate {name}", 0, 1)
    figures = job.evaluate(judged, source=None if model is None else source)
    progress(f"evaluate {name}", 1, 1)
    return Evaluation(metric=name, primary=job.primary, figures=figures, protocol=job.title)
