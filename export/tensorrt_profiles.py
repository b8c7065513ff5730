"""Sizes of dynamic dimensions that a TensorRT engine is built for: least, best, most.

An engine takes any size between the least and the most, and its kernels are chosen for the best.
Exporters name dimensions after what they are, so the name gives a role, and a role has a usual
span; every span can be given by the name of the dimension or by its role.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxq.errors import UsageError

__all__ = ["DEFAULTS", "Shape", "forget_question_marks", "input_shapes", "role_of"]

Span = tuple[int, int, int]
"""(least, best, most)."""

DEFAULTS: Mapping[str, Span] = {
    "batch": (1, 1, 4),
    "sequence": (1, 128, 512),
    "cache": (0, 512, 2048),
    "size": (32, 320, 1280),
}
"""The usual spans: of a batch, of tokens or frames, of those that are cached, of an image's side.
A dimension of all tokens, cached and new, has the sum of the two."""

_ROLES = (
    ("batch", re.compile(r"^(n|b|batch.*|.*batch_size.*|num_beams|bs)$")),
    ("total", re.compile(r"total|\+|mask_len|past_and")),
    ("cache", re.compile(r"past|cache|kv")),
    ("size", re.compile(r"^(h|w|height|width|.*image.*)$")),
    ("sequence", re.compile(r"")),
)

_NAMELESS = re.compile(r"unk.*|\?|(\w+_)?dim_?\d+|.*DynamicDimension\.\d+|-?\d+|s\d+")
"""Names that exporters make up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """What an engine takes as one input.

    Attributes:
        name: of the input.
        least: the smallest shape.
        best: the shape that kernels are chosen for.
        most: the largest shape.
    """

    name: str
    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]

    @property
    def is_dynamic(self) -> bool:
        """Whether more than one shape is taken."""
        return self.least != self.most


def role_of(name: str | None, axis: int, rank: int) -> str:
    """What a dimension is: ``batch``, ``sequence``, ``cache``, ``total`` or ``size``."""
    if name and not _NAMELESS.fullmatch(name):
        return next(role for role, pattern in _ROLES if pattern.search(name.lower()))
    if axis == 0:
        return "batch"
    return "size" if rank == 4 else "sequence"


def input_shapes(model: ir.Model, spans: Mapping[str, Sequence[int]]) -> list[Shape]:
    """The shapes of all inputs of a model.

    Args:
        model: the model; its inputs have shapes.
        spans: (least, best, most) by the name of a dimension, by ``input.axis`` for one without
            a name, or by role; those in `DEFAULTS` for all others.

    Raises:
        UsageError: a span is not three sizes in order, or names no dimension or role; or an input
            has no shape.
    """
    used: set[str] = set()
    known = {name: _checked(name, span) for name, span in spans.items()}
    shapes = []
    for value in model.graph.inputs:
        if value.shape is None:
            raise UsageError(
                f"Input {value.name!r} has no shape, so no engine can be built for it: state its "
                "rank on export."
            )
        found = [_span(value, axis, known, used) for axis in range(len(value.shape))]
        least, best, most = (tuple(span[i] for span in found) for i in range(3))
        shapes.append(Shape(name=value.name or "", least=least, best=best, most=most))
    unknown = sorted(set(known) - used - set(DEFAULTS))
    if unknown:
        raise UsageError(
            f"The model has no dimension {unknown[0]!r}. Its dynamic dimensions: "
            f"{', '.join(_dynamic(model)) or 'none'}; roles: {', '.join(DEFAULTS)}."
        )
    return shapes


def forget_question_marks(model: ir.Model) -> bool:
    """Take the name ``?`` off dimensions of inputs, in place; whether there were any.

    Some exporters give it to all dimensions, and TensorRT holds those of one name to be equal.
    """
    found = False
    for value in model.graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value == "?" and value.shape is not None:
                value.shape[axis] = None
                found = True
    return found


def _span(value: ir.Value, axis: int, known: Mapping[str, Span], used: set[str]) -> Span:
    dimension = None if value.shape is None else value.shape[axis]
    if isinstance(dimension, int) and dimension >= 0:
        return (dimension, dimension, dimension)
    name = dimension.value if isinstance(dimension, ir.SymbolicDim) else None
    role = role_of(name, axis, 0 if value.shape is None else len(value.shape))
    for key in (name, f"{value.name}.{axis}"):
        if key is not None and key in known:
            used.add(key)
            return known[key]
    if role != "total":
        return known.get(role, DEFAULTS[role])
    new = known.get("sequence", DEFAULTS["sequence"])
    cached = known.get("cache", DEFAULTS["cache"])
    return (new[0] + cached[0], new[1] + cached[1], new[2] + cached[2])


def _checked(name: str, span: Sequence[int]) -> Span:
    sizes = tuple(int(size) for size in span)
    if len(sizes) != 3 or not 0 <= sizes[0] <= sizes[1] <= sizes[2] or sizes[1] == 0:
        raise UsageError(
            f"Shapes of {name!r} are {list(span)}: give the least, the best and the most size, "
            "in that order."
        )
    return (sizes[0], sizes[1], sizes[2])


def _dynamic(model: ir.Model) -> list[str]:
    return [
        (size.value if isinstance(size, ir.SymbolicDim) and size.value else f"{value.name}.{axis}")
        for value in model.graph.inputs
        for axis, size in enumerate(value.shape or ())
        if not isinstance(size, int) or size < 0
    ]
