"""One number for how far outputs are from those of a reference: 0 when nothing is lost.

============  =====================================================================
loss          what it is
============  =====================================================================
kl            mean KL divergence of the scores along the last axis, in nats
noise         Σ (b − a)² / Σ a² of an output: 0.01 is an SQNR of 20 dB
similarity    1 − what `onnxq.evaluate.similarity` gives, and so on:
agreement     1 − share of equal decisions
detection     1 − overlap of boxes or masks
reading       1 − share of lines read alike
============  =====================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from onnxq.errors import CalibrationError, UsageError, nearest_word
from onnxq.evaluate.classification import AgreementJudge
from onnxq.evaluate.detection import DetectionJudge
from onnxq.evaluate.deviation import DeviationSums
from onnxq.evaluate.feeds import feeds_of
from onnxq.evaluate.pair import Figures, Judge, pick_output
from onnxq.evaluate.reading import ReadingJudge
from onnxq.evaluate.similarity import SimilarityJudge
from onnxq.runtime import Session, TensorSpec

__all__ = ["JUDGES", "LOSSES", "PairedLoss"]

JUDGES: Mapping[str, Callable[..., Judge]] = {
    "similarity": SimilarityJudge,
    "agreement": AgreementJudge,
    "detection": DetectionJudge,
    "reading": ReadingJudge,
}
"""Metrics of two models' outputs on the same inputs, by name; 1 is best."""

LOSSES = ("kl", "noise", *JUDGES)
"""The losses there are; ``auto`` takes kl of outputs that hold scores, else noise."""

_SCORES = ("logits", "prob", "softmax", "score")
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
        loss: str = "auto",
        output: str | None = None,
    ) -> None:
        """Run the reference once on every sample and keep what is judged.

        Args:
            reference: the model to agree with; it is not needed afterwards.
            samples: inputs by name.
            loss: one of `LOSSES`, or ``auto``.
            output: the output to judge; None leaves the choice: of scores, or the first.

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
        self.name = _chosen(loss, reference.outputs, output)
        self.samples = samples
        self._output = output
        self.outputs = self._names(reference.outputs)
        self._kept = [
            reference.run(feeds_of(reference, sample, index), self.outputs)
            for index, sample in enumerate(samples)
        ]

    @property
    def unit(self) -> str:
        """What the number is, in words."""
        what = ", ".join(self.outputs)
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
        sums = DeviationSums(scores=self.name == "kl")
        for sample, ours in zip(self.samples, self._kept, strict=True):
            theirs = run(sample, self.outputs)
            for name in self.outputs:
                sums.add(ours[name], theirs[name])
        found = sums.result()
        if found.max_error == math.inf:
            return math.inf
        if self.name == "kl":
            return math.inf if found.kl is None or math.isnan(found.kl) else found.kl
        return 0.0 if found.sqnr_db is None else float(10.0 ** (-found.sqnr_db / 10.0))

    def of_session(self, session: Session) -> float:
        """The loss of another form of the model."""
        return self.of(lambda sample, names: session.run(feeds_of(session, sample, 0), names))

    def _judge(self) -> Judge:
        return JUDGES[self.name](**({} if self._output is None else {"output": self._output}))

    def _names(self, outputs: Sequence[TensorSpec]) -> list[str]:
        if self.name in JUDGES:
            return self._judge().select(outputs)
        if self._output is None and self.name == "kl":
            scores = [spec for spec in outputs if _holds_scores(spec)]
            outputs = scores or outputs
        return [pick_output(outputs, self._output, ranks=_RANKS, what="numbers").name]


def _chosen(loss: str, outputs: Sequence[TensorSpec], output: str | None) -> str:
    if loss == "auto":
        shown = [spec for spec in outputs if output in (None, spec.name)]
        return "kl" if any(_holds_scores(spec) for spec in shown) else "noise"
    if loss not in LOSSES:
        near = nearest_word(loss, LOSSES)
        hint = f" Did you mean {near!r}?" if near else ""
        raise UsageError(f"There is no loss {loss!r}.{hint} Choose one of {', '.join(LOSSES)}.")
    return loss


def _holds_scores(spec: TensorSpec) -> bool:
    """Whether an output says by its name that it holds scores of classes along its last axis."""
    is_named = any(word in spec.name.lower() for word in _SCORES)
    return is_named and spec.dtype.kind in "fV" and len(spec.shape) >= 1 and spec.shape[-1] != 1
