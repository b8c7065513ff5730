"""The verb ``onnxq report``: one page for one artifact, or one that compares several."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxq.errors import CalibrationError, UsageError
from onnxq.model_pair import ModelPair, open_pair
from onnxq.passes.base import Progress, no_progress
from onnxq.provenance import artifact_report, original_of
from onnxq.report.comparing import comparison_view
from onnxq.report.facts import Facts, distinct_names, read_facts
from onnxq.report.measures import Measures, measure
from onnxq.report.page import render
from onnxq.report.view import artifact_view, suspects
from onnxq.runtime.cache import write_whole

__all__ = ["Reported", "explain", "report"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reported:
    """A page that was written.

    Attributes:
        page: the HTML file.
        nbytes: its size.
        artifacts: names of what it shows.
        notes: what could not be measured, as sentences.
    """

    page: str
    nbytes: int
    artifacts: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def report(
    artifacts: Sequence[str | Path],
    out: str | Path,
    *,
    original: str | Path | None = None,
    data: Any = None,
    run: bool = True,
    sites: int = 48,
    labels: str | Path | Sequence[str] = (),
    tokenizer: str | Path | None = None,
    window: int | None = None,
    limit: int | None = None,
    progress: Progress = no_progress,
) -> Reported:
    """Write a page that explains one artifact, or compares several of one model.

    Args:
        artifacts: folders of artifacts, or any quantized models.
        out: the HTML file.
        original: the float model; None takes the one that an artifact says it was made from.
        data: inputs as in `onnxq.quantize`; None takes those that the artifact was made with,
            when they are there, else random ones.
        run: measure losses, speed and outputs now; without it the page has what the artifact says.
        sites: of at most so many sites the effect of restoring them is measured, one run each;
            none when several artifacts are compared.
        labels: names of classes by number: a text file with one on a line, or a sequence.
        tokenizer: for a text; as in `onnxq.quantize`.
        window: of a text, tokens in a sample; None takes what the artifact was made with.
        limit: samples at most; None takes what the artifact was made with.
        progress: called with (what, done, total).

    Raises:
        UsageError: no artifact, one given twice, or a model that cannot be run without its
            original.
        OnnxqError: a model or the data cannot be read.
    """
    if not artifacts:
        raise UsageError("There is nothing to report: give at least one artifact.")
    names = _labels(labels)
    found: list[tuple[Facts, Measures | None]] = []
    facts = distinct_names([_facts(path, original) for path in artifacts])
    for one, path in zip(facts, artifacts, strict=True):
        measures = None
        if run:
            pair = open_pair(
                one.original,
                path,
                data=data,
                tokenizer=tokenizer,
                window=window,
                limit=limit,
            )
            measures = measure(
                pair,
                suspects=suspects(one),
                sites=sites if len(artifacts) == 1 else 0,
                labels=names,
                progress=progress,
            )
        found.append((one, measures))
    return _written(found, Path(out))


def explain(
    pair: ModelPair, out: Path, *, sites: int = 48, progress: Progress = no_progress
) -> Reported:
    """Write the page of one artifact, measured on the inputs of a pair.

    Args:
        pair: the artifact and its original, with inputs.
        out: the HTML file.
        sites: as in `report`.
        progress: called with (what, done, total).

    Raises:
        OnnxqError: a model cannot be read.
    """
    facts = read_facts(pair.quantized, pair.report, pair.original)
    measures = measure(pair, suspects=suspects(facts), sites=sites, progress=progress)
    return _written([(facts, measures)], out)


def _written(found: Sequence[tuple[Facts, Measures | None]], page: Path) -> Reported:
    if len(found) == 1:
        text = render("report.html", artifact_view(*found[0]))
    else:
        text = render("comparison.html", comparison_view(found))
    write_whole(page, text)
    notes = [
        f"{one.name}: {what} could not be measured: {sentence}"
        for one, measures in found
        if measures is not None
        for what, sentence in measures.failed.items()
    ]
    return Reported(
        page=str(page),
        nbytes=page.stat().st_size,
        artifacts=tuple(one.name for one, _ in found),
        notes=tuple(notes),
    )


def _facts(path: str | Path, original: str | Path | None) -> Facts:
    known = artifact_report(path)
    source = original_of(known) if original is None else Path(original)
    return read_facts(path, known, source)


def _labels(given: str | Path | Sequence[str]) -> Sequence[str]:
    if not isinstance(given, (str, Path)):
        return given
    try:
        return Path(given).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"{str(given)!r} cannot be read as labels ({error}): give a text with one name on a "
            "line."
        ) from error
