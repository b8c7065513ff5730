"""One number for how far a model is from the float model, of the kind that its outputs ask for.

==============  ===========================================  ====================================
kind            of                                           the loss
==============  ===========================================  ====================================
``next_token``  ``logits`` of a decoder with token ids       mean −ln p(next token), in nats
``scores``      an output whose name says logits             mean KL(float ‖ model), in nats
``vectors``     every other floating output                  mean ‖y' − y‖² / ‖y‖² over samples
==============  ===========================================  ====================================

Of the first, what counts is the excess over the float model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxq.errors import CalibrationError, UnsupportedGraph
from onnxq.evaluate.deviation import DeviationSums
from onnxq.evaluate.feeds import feeds_of
from onnxq.evaluate.perplexity import token_losses
from onnxq.runtime import open_session

__all__ = ["LossMeter", "OutputLoss", "find_output_loss"]

Array = np.ndarray[Any, Any]
Kind = Literal["next_token", "scores", "vectors"]

_UNITS: Mapping[Kind, str] = {
    "next_token": "negative log-likelihood of the next token above the float model's, nats",
    "scores": "KL divergence of the scores from the float model's, nats",
    "vectors": "squared error of the outputs relative to their size",
}
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputLoss:
    """Which outputs are judged, and how.

    Attributes:
        outputs: their names.
        kind: see the module docstring.
        tokens: the input that holds token ids, for ``next_token``.
    """

    outputs: tuple[str, ...]
    kind: Kind
    tokens: str = ""

    @property
    def unit(self) -> str:
        """The name of the loss and its unit."""
        return _UNITS[self.kind]


def find_output_loss(model: ir.Model) -> OutputLoss:
    """What to judge a model by, from the names and types of its inputs and outputs.

    Raises:
        UnsupportedGraph: no output holds floating numbers.
    """
    floating = [value for value in model.graph.outputs if value.dtype in _FLOATS]
    logits = [value.name or "" for value in floating if "logits" in (value.name or "")]
    ids = [
        value.name or ""
        for value in model.graph.inputs
        if (value.name or "").endswith("input_ids") and value.dtype == ir.DataType.INT64
    ]
    if logits == ["logits"] and ids and _rank(model, "logits") == 3:
        return OutputLoss(outputs=("logits",), kind="next_token", tokens=ids[0])
    if logits:
        return OutputLoss(outputs=tuple(logits), kind="scores")
    names = [value.name or "" for value in floating]
    kept = [name for name in names if not name.startswith(("present", "past"))] or names
    if not kept:
        raise UnsupportedGraph(
            f"No output of {model.graph.name!r} holds floating numbers, so there is nothing to "
            "measure the loss of accuracy on: give the model an output of scores or vectors."
        )
    return OutputLoss(outputs=tuple(kept), kind="vectors")


def _rank(model: ir.Model, name: str) -> int | None:
    value = next(value for value in model.graph.outputs if value.name == name)
    return None if value.shape is None else len(value.shape)


class LossMeter:
    """The loss of models on a few samples, against what the float model gives there."""

    def __init__(
        self,
        reference: ir.Model | str | Path,
        samples: Sequence[Mapping[str, Array]],
        loss: OutputLoss,
    ) -> None:
        """Run the float model once.

        Raises:
            CalibrationError: there are no samples, or one has no token to predict.
            OnnxqError: the runtime does not take the model or the samples.
        """
        if not samples:
            raise CalibrationError(
                "There are no samples to measure the loss on: give at least one."
            )
        self.loss = loss
        self._samples = samples
        self._float: list[dict[str, Array]] = []
        self.reference = 0.0
        """Of ``next_token``: the loss of the float model itself; else 0."""
        if loss.kind == "next_token":
            self.reference = self._next_token(reference)
        else:
            self._float = self._run(reference)

    def excess(self, model: ir.Model | str | Path) -> float:
        """The loss of a model above that of the float model.

        Raises:
            OnnxqError: the runtime does not take the model.
        """
        if self.loss.kind == "next_token":
            return self._next_token(model) - self.reference
        found = self._run(model)
        if self.loss.kind == "scores":
            return float(np.mean([self._kl(name, found) for name in self.loss.outputs]))
        return float(np.mean([self._apart(a, b) for a, b in zip(self._float, found, strict=True)]))

    def _run(self, model: ir.Model | str | Path) -> list[dict[str, Array]]:
        with open_session(model) as session:
            return [
                session.run(feeds_of(session, sample, index), self.loss.outputs)
                for index, sample in enumerate(self._samples)
            ]

    def _next_token(self, model: ir.Model | str | Path) -> float:
        total, count = 0.0, 0
        name = self.loss.outputs[0]
        with open_session(model) as session:
            for index, sample in enumerate(self._samples):
                logits = session.run(feeds_of(session, sample, index), [name])[name]
                for scores, ids in zip(logits, sample[self.loss.tokens], strict=True):
                    total += float(token_losses(scores[:-1], ids[1:]).sum())
                    count += len(ids) - 1
        if not count:
            raise CalibrationError(
                "No sample has a token to predict: give texts of two tokens or more."
            )
        return total / count

    def _kl(self, name: str, found: Sequence[Mapping[str, Array]]) -> float:
        sums = DeviationSums(scores=True)
        for before, after in zip(self._float, found, strict=True):
            sums.add(before[name], after[name])
        return sums.result().kl or 0.0

    def _apart(self, before: Mapping[str, Array], after: Mapping[str, Array]) -> float:
        shares = []
        for name in self.loss.outputs:
            wanted = before[name].astype(np.float64)
            error = after[name].astype(np.float64) - wanted
            shares.append(float(np.sum(error**2)) / max(float(np.sum(wanted**2)), 1e-30))
        return float(np.mean(shares))
