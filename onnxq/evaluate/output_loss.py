"""What a model is judged by, from the names and types of its inputs and outputs.

==============  ===========================================  ====================================
kind            of                                           the loss
==============  ===========================================  ====================================
``next_token``  ``logits`` of a decoder with token ids       mean −ln p(next token), in nats
``scores``      outputs whose name says scores               mean KL(float ‖ model), in nats
``vectors``     every other floating output                  ‖y' − y‖² / ‖y‖²
==============  ===========================================  ====================================

Of the first, what counts is the excess over the float model. The others are the losses ``kl`` and
``noise`` of `onnxq.evaluate.losses`, which measures them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxq.errors import UnsupportedGraph
from onnxq.runtime import TensorSpec

__all__ = ["Kind", "OutputLoss", "find_output_loss", "output_loss_of"]

Kind = Literal["next_token", "scores", "vectors"]

_UNITS: Mapping[Kind, str] = {
    "next_token": "negative log-likelihood of the next token above the float model's, nats",
    "scores": "KL divergence of the scores from the float model's, nats",
    "vectors": "squared error of the outputs relative to their size",
}
_SCORES = ("logits", "prob", "softmax", "score")
_STATES = ("present", "past")


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
    """What to judge a model by.

    Raises:
        UnsupportedGraph: no output holds floating numbers.
    """
    graph = model.graph
    return output_loss_of(_specs(graph.inputs), _specs(graph.outputs), f"{graph.name!r}")


def output_loss_of(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], what: str = "the model"
) -> OutputLoss:
    """What to judge a model of these inputs and outputs by.

    Args:
        inputs: of the model.
        outputs: those that may be judged.
        what: the model, for the message.

    Raises:
        UnsupportedGraph: no output holds floating numbers.
    """
    floating = [spec for spec in outputs if spec.dtype.kind in "fV"]
    scores = [spec for spec in floating if _holds_scores(spec)]
    ids = [i.name for i in inputs if i.name.endswith("input_ids") and i.dtype == np.int64]
    if [spec.name for spec in scores] == ["logits"] and ids and len(scores[0].shape) == 3:
        return OutputLoss(outputs=("logits",), kind="next_token", tokens=ids[0])
    if scores:
        return OutputLoss(outputs=tuple(spec.name for spec in scores), kind="scores")
    names = [spec.name for spec in floating]
    kept = [name for name in names if not name.startswith(_STATES)] or names
    if not kept:
        raise UnsupportedGraph(
            f"No output of {what} holds floating numbers, so there is nothing to measure the loss "
            "of accuracy on: give the model an output of scores or vectors."
        )
    return OutputLoss(outputs=tuple(kept), kind="vectors")


def _holds_scores(spec: TensorSpec) -> bool:
    """Whether an output says by its name that it holds scores of classes along its last axis."""
    is_named = any(word in spec.name.lower() for word in _SCORES)
    return is_named and len(spec.shape) >= 1 and spec.shape[-1] != 1


def _specs(values: Sequence[ir.Value]) -> list[TensorSpec]:
    return [
        TensorSpec(
            name=value.name or "",
            dtype=np.dtype(object) if value.dtype is None else value.dtype.numpy(),
            shape=_shape(value),
        )
        for value in values
    ]


def _shape(value: ir.Value) -> tuple[int | str | None, ...]:
    """The dimensions; of an unknown shape, one that is not known."""
    if value.shape is None:
        return (None,)
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
