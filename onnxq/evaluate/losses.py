"""One number for how far outputs are from those of a reference: 0 when nothing is lost.

============  =====================================================================
loss          what it is
============  =====================================================================
kl            mean KL divergence of the scores along the last axis, in nats
noise         Σ (b − a)² / Σ a² of a sample's output: 0.01 is an SQNR of 20 dB
similarity    1 − what `onnxq.evaluate.similarity` gives, and so on:
agreement     1 − share of equal decisions
detection     1 − overlap of boxes or masks
reading       1 − share of lines read alike
============  =====================================================================

The first two are means over outputs, ``noise`` over samples too. Which outputs are judged when none
is named, and which of the two, `onnxq.evaluate.output_loss` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.errors import CalibrationError, UsageError, nearest_word
from onnxq.evaluate.classification import AgreementJudge
from onnxq.evaluate.detection import DetectionJudge
from onnxq.evaluate.deviation import DeviationSums
from onnxq.evaluate.feeds import feeds_of
from onnxq.evaluate.output_loss import OutputLoss, output_loss_of
from onnxq.evaluate.pair import Figures, Judge, pick_output
from onnxq.evaluate.perplexity import token_losses
from onnxq.evaluate.reading import ReadingJudge
from onnxq.evaluate.similarity import SimilarityJudge
from onnxq.runtime import Session, TensorSpec, open_session

__all__ = ["JUDGES", "LOSSES", "LossMeter", "PairedLoss"]

JUDGES: Mapping[str, Callable[..., Judge]] = {
    "similarity": SimilarityJudge,
    "agreement": AgreementJudge,
    "detection": DetectionJudge,
    "reading": ReadingJudge,
}
"""Metrics of two models' outputs on the same inputs, by name; 1 is best."""

LOSSES = ("kl", "noise", *JUDGES)
"""The losses there are; ``auto`` takes kl of outputs that hold scores, else noise."""

_NAMES = {"next_token": "kl", "scores": "kl", "vectors": "noise"}
_RANKS = (1, 2, 3, 4, 5, 6)


class PairedLoss:
    """The loss of anything that gives the outputs of a model, on a few samples.

    Attributes:
        name: one of `LOSSES`.
        outputs: names of the outputs that are judged.
        samples: the inputs.
    """

    def __init__(
        self,
        reference: Session,
        samples: Sequence[Figures],
        *,
        loss: str | OutputLoss = "auto",
        output: str | None = None,
    ) -> None:
        """Run the reference once on every sample and keep what is judged.

        Args:
            reference: the model to agree with; it is not needed afterwards.
            samples: inputs by name.
            loss: one of `LOSSES`, or ``auto``; or what to judge, ``next_token`` by ``kl``.
            output: the output to judge; None leaves the choice.

        Raises:
            UsageError: there is no such loss.
            UnsupportedGraph: there is no output of that name or kind.
            CalibrationError: there are no samples, or one lacks an input.
            OnnxqError: the runtime failed.
        """
        if not samples:
            raise CalibrationError(
                "There are no samples to measure the loss on: give at least one."
            )
        self._output = output
        self.samples = samples
        self.name, self.outputs = self._judged(reference, loss)
        self._kept = [
            reference.run(feeds_of(reference, sample, index), self.outputs)
            for index, sample in enumerate(samples)
        ]

    @property
    def unit(self) -> str:
        """What the number is, in words."""
        what = ", ".join(self.outputs) if len(self.outputs) < 4 else "the outputs"
        if self.name == "kl":
            return f"KL divergence of {what} from the reference's, nats"
        if self.name == "noise":
            return f"squared error of {what} over its square"
        return f"1 − {self.name} of {what}"

    def of(self, run: Callable[[Figures, Sequence[str]], Figures]) -> float:
        """The loss of what ``run(sample, names of outputs)`` gives; inf when it is not finite."""
        if self.name in JUDGES:
            judge = self._judge()
            for sample, ours in zip(self.samples, self._kept, strict=True):
                judge.add(ours, run(sample, self.outputs), sample)
            value = judge.figures()[judge.primary]
            return math.inf if value is None else 1.0 - float(value)
        sums = {name: DeviationSums(scores=True) for name in self.outputs}
        noises = []
        for sample, ours in zip(self.samples, self._kept, strict=True):
            theirs = run(sample, self.outputs)
            for name in self.outputs:
                if self.name == "kl":
                    sums[name].add(ours[name], theirs[name])
                else:
                    noises.append(_noise(ours[name], theirs[name]))
        return float(np.mean(noises or [_kl(one) for one in sums.values()]))

    def of_session(self, session: Session) -> float:
        """The loss of another form of the model."""
        return self.of(lambda sample, names: session.run(feeds_of(session, sample, 0), names))

    def _judge(self) -> Judge:
        return JUDGES[self.name](**({} if self._output is None else {"output": self._output}))

    def _judged(self, reference: Session, loss: str | OutputLoss) -> tuple[str, Sequence[str]]:
        """The name of the loss and the outputs it looks at."""
        if isinstance(loss, str) and loss != "auto" and loss not in LOSSES:
            near = nearest_word(loss, LOSSES)
            hint = f" Did you mean {near!r}?" if near else ""
            raise UsageError(f"There is no loss {loss!r}.{hint} Choose one of {', '.join(LOSSES)}.")
        if isinstance(loss, str) and loss in JUDGES:
            self.name = loss
            return loss, self._judge().select(reference.outputs)
        outputs: Sequence[TensorSpec] = reference.outputs
        if self._output is not None:
            outputs = [pick_output(outputs, self._output, ranks=_RANKS, what="numbers")]
        if isinstance(loss, str):
            found = output_loss_of(reference.inputs, outputs)
            name = loss if loss != "auto" else _NAMES[found.kind]
        else:
            found, name = loss, _NAMES[loss.kind]
        return name, list(found.outputs)


def _kl(sums: DeviationSums) -> float:
    kl = sums.result().kl
    return math.inf if kl is None or math.isnan(kl) else kl


def _noise(reference: np.ndarray, other: np.ndarray) -> float:
    sums = DeviationSums()
    sums.add(reference, other)
    decibels = sums.result().sqnr_db
    return 0.0 if decibels is None else float(10.0 ** (-decibels / 10.0))


class LossMeter:
    """The loss of models on a few samples, above what the float model loses there."""

    def __init__(
        self,
        reference: ir.Model | str | Path,
        samples: Sequence[Figures],
        loss: OutputLoss,
    ) -> None:
        """Run the float model once.

        Raises:
            CalibrationError: there are no samples, or one has no token to predict.
            OnnxqError: the runtime does not take the model or the samples.
        """
        self.loss = loss
        self._samples = samples
        self.reference = 0.0
        """Of ``next_token``: the loss of the float model itself; else 0."""
        with open_session(reference) as session:
            if loss.kind == "next_token":
                self.reference = self._next_token(session)
            else:
                self._paired = PairedLoss(session, samples, loss=loss)

    def excess(self, model: ir.Model | str | Path) -> float:
        """The loss of a model above that of the float model.

        Raises:
            OnnxqError: the runtime does not take the model.
        """
        with open_session(model) as session:
            if self.loss.kind == "next_token":
                return self._next_token(session) - self.reference
            return self._paired.of_session(session)

    def _next_token(self, session: Session) -> float:
        total, count = 0.0, 0
        name = self.loss.outputs[0]
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
