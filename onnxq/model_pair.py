"""A float model and a quantized form of it, with what is known of how the one became the other."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.errors import UsageError
from onnxq.evaluate.hybrid import Hybrid
from onnxq.evaluate.losses import PairedLoss
from onnxq.graph import load
from onnxq.graph.reading import find_model_file
from onnxq.passes.base import Samples
from onnxq.passes.recipe import recipe_from
from onnxq.passes.runner import without_extras
from onnxq.provenance import (
    HELD_BACK,
    Data,
    artifact_report,
    float_twin,
    original_of,
    split_samples,
)
from onnxq.runtime import open_session, random_samples
from onnxq.runtime.generation import is_text_generation

__all__ = ["ModelPair", "open_pair"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelPair:
    """A float model, a quantized form of it, and inputs.

    Attributes:
        original: path of the float model: file or folder.
        quantized: path of the quantized one.
        report: ``onnxq.json`` of the quantized one; None when it is no artifact of onnxq.
        calibration: what it was calibrated with; None when there are no data.
        samples: a few inputs to compare on, which calibration has not seen; random without data.
        is_random: whether the samples are random.
    """

    original: Path
    quantized: Path
    report: Mapping[str, Any] | None
    calibration: Samples | None
    samples: Sequence[Mapping[str, np.ndarray]]
    is_random: bool

    @functools.cached_property
    def original_model(self) -> ir.Model:
        """The float model."""
        return load(self.original)

    @functools.cached_property
    def quantized_model(self) -> ir.Model:
        """The quantized model."""
        return load(self.quantized)

    def loss(
        self, loss: str = "auto", output: str | None = None, most: int | None = None
    ) -> PairedLoss:
        """The loss against the outputs of the float model, on ``most`` samples at most.

        See `onnxq.evaluate.losses`.
        """
        with open_session(find_model_file(self.original)) as session:
            return PairedLoss(session, self.samples[:most], loss=loss, output=output)

    def quantized_loss(self, loss: PairedLoss, *, optimize: bool = True) -> float:
        """The loss of the quantized model as it is written, with the runtime's optimizations."""
        with open_session(find_model_file(self.quantized), optimize=optimize) as session:
            return loss.of_session(session)

    @functools.cached_property
    def twin(self) -> ir.Model:
        """The float twin: the original after the transforms of the artifact's recipe."""
        return float_twin(self.original_model, self.report, self.calibration)

    def hybrid(self) -> Hybrid:
        """The float twin and the quantized model in one session, place by place."""
        return Hybrid(self.twin, self.quantized_model)


def open_pair(
    original: str | Path | None,
    quantized: str | Path,
    *,
    data: Any = None,
    tokenizer: str | Path | None = None,
    window: int | None = None,
    limit: int | None = None,
) -> ModelPair:
    """Find both models and the data.

    Args:
        original: the float model; None takes the one that the artifact says it was made from.
        quantized: an artifact, or any model.
        data: inputs as in `onnxq.quantize`; None takes those that the artifact says it was made
            with, when they are still there, else random ones.
        tokenizer: for a text; as in `onnxq.quantize`.
        window: of a text, tokens in a sample; None takes what the artifact was made with.
        limit: samples at most; None takes what the artifact was made with.

    Raises:
        UsageError: there is no original where the artifact says, or it has changed.
        OnnxqError: a model or the data cannot be read.
    """
    report = artifact_report(quantized)
    source = original_of(report) if original is None else Path(original)
    if source is None:
        raise UsageError(
            f"The float model that {str(quantized)!r} was made from is not known, not there any "
            "more, or not the same file: give its path."
        )
    known = Data.of(report)
    if data is None and known.path is not None and Path(known.path).exists():
        data = known.path
    source, made = _place(source), _place(Path(quantized))
    if data is None:
        samples = random_samples(load(source), 2)
        return ModelPair(
            original=source,
            quantized=made,
            report=report,
            calibration=None,
            samples=samples,
            is_random=True,
        )
    from onnxq.calibration import open_data, tokenizer_beside

    recipe = None if report is None else recipe_from(report["recipe"])
    words = tokenizer or tokenizer_beside(source) or tokenizer_beside(quantized) or known.tokenizer
    opened: Samples = open_data(
        data,
        load(source),
        tokenizer=words,
        length=window or known.window,
        limit=limit or known.limit,
        extras=frozenset() if recipe is None else recipe.extra_arrays,
    )
    if recipe is not None:
        opened = without_extras(opened, recipe) or opened
    calibration, held_back = split_samples(opened)
    return ModelPair(
        original=source,
        quantized=made,
        report=report,
        calibration=calibration,
        samples=list(itertools.islice(held_back, HELD_BACK)),
        is_random=False,
    )


def _place(path: Path) -> Path:
    """The folder of a model that generates text, which its runtime opens; else the path itself."""
    folder = find_model_file(path).parent
    return folder if is_text_generation(folder) else path
