"""The stages a model goes through, and what is legal at each: an executable specification.

``FLOAT → PREPARED → TRANSFORMED → CALIBRATED → QUANTIZED → LOWERED``. The stage is kept in
``model.meta``; the recipe runner checks it between passes, so that "rotated after calibrating" is
an error message and not a bad model.
"""

from __future__ import annotations

import enum

import onnx_ir as ir

from onnxq.errors import UnsupportedGraph

_META_KEY = "onnxq.stage"


class Stage(enum.IntEnum):
    """How far a model has come; later stages compare greater."""

    FLOAT = 0
    """As it was loaded: weights may be Constant nodes, norms may be decomposed."""
    PREPARED = 1
    """Constants are initializers, foldable arithmetic is folded, names are unique."""
    TRANSFORMED = 2
    """Equivalent transforms have been applied; no more of them may follow calibration."""
    CALIBRATED = 3
    """Activation ranges are in ``value.meta`` and belong to the graph as it is."""
    QUANTIZED = 4
    """Weights or activations are stored in low-bit formats."""
    LOWERED = 5
    """Written in the form of one runtime: fused or custom operators."""


def stage_of(model: ir.Model) -> Stage:
    """The stage the model has reached; a model nobody marked is `Stage.FLOAT`."""
    stage = model.meta.get(_META_KEY, Stage.FLOAT)
    return Stage(stage)


def mark_stage(model: ir.Model, stage: Stage) -> None:
    """Record that the model has reached ``stage``. It never goes back."""
    model.meta[_META_KEY] = max(stage, stage_of(model))


def clone_model(model: ir.Model) -> ir.Model:
    """A copy of the model that shares its weights and keeps its stage and other facts.

    ``ir.Model.clone`` drops ``model.meta``, and with it the stage.
    """
    copy = model.clone()
    copy.meta.update(model.meta)
    return copy


def require_stage(model: ir.Model, at_least: Stage, who: str) -> None:
    """Raise `UnsupportedGraph` unless the model has reached ``at_least``."""
    here = stage_of(model)
    if here < at_least:
        raise UnsupportedGraph(
            f"{who} needs a model at stage {at_least.name}, and this one is at {here.name}: "
            f"put the pass that gives {at_least.name} earlier in the recipe."
        )
