"""The grid of ``docs/results.md`` for transforms: what is done before rounding, and how is rounded.

Both are rows of passes with their options, the very ones that recipes are made of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxq.errors import RecipeError, nearest_word
from onnxq.passes.base import Pass
from onnxq.passes.recipe import Recipe
from onnxq.passes.registry import all_passes
from onnxq.passes.site_patterns import HEAD

__all__ = [
    "FORMATS",
    "KLT",
    "MIN_TOKEN_DB",
    "PREPARE",
    "ROTATE",
    "ROTATIONS",
    "SUPPORT",
    "TRANSFORMS",
    "Format",
    "Row",
    "Transform",
    "is_in_grid",
    "recipe_of",
]

MIN_TOKEN_DB = 25.0
"""What products keep of their tokens where one calibrated scale is asked for."""

Row = tuple[str, dict[str, Any]]
"""Key of a pass and its options."""

PREPARE: tuple[Row, ...] = (
    ("constants_to_initializers", {}),
    ("fold_constants", {}),
    ("convert_opset", {"minimum": 25}),
    ("fuse_layer_norm", {}),
    ("fuse_rms_norm", {}),
    ("fuse_gelu", {}),
    ("fuse_silu", {}),
    ("clean", {}),
)
"""What comes before every set of transforms."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """How weights and activations are rounded.

    Attributes:
        weights: format of the weights as transforms are told it; GPTQ keeps scales in float16.
        bits: of activations; 0 leaves them in float.
        granularity: of activations: a scale for each ``token``, or one for a ``tensor``.
        symmetric: activations have no zero point.
        clip: share of the range of a token that is kept, where a transform has not learned it.
        min_token_db: for ``tensor``: what products keep of their tokens, in dB; where one scale
            leaves less, each token has its own.
        by_gptq: weights are rounded by GPTQ; else to nearest.
    """

    weights: str
    bits: int = 0
    granularity: str = "token"
    symmetric: bool = True
    clip: float = 1.0
    min_token_db: float = 0.0
    by_gptq: bool = False

    def rows(self, *, clip_is_learned: bool) -> tuple[Row, ...]:
        """The passes: activations first, so that solvers see them rounded; then weights."""
        rounded: list[Row] = []
        if self.bits:
            options: dict[str, Any] = {
                "bits": self.bits,
                "granularity": self.granularity,
                "symmetric": self.symmetric,
                "exclude": (HEAD,),
            }
            if not clip_is_learned:
                options["clip"] = self.clip
            if self.min_token_db:
                options["min_token_db"] = self.min_token_db
            rounded.append(("quantize_activations", options))
        weights: dict[str, Any] = {"format": self.weights, "write": "dequantize"}
        if self.by_gptq:
            weights.update(
                format=f"{self.weights}_f16",
                solver="gptq",
                overrides={HEAD: "int8_g64"},
                data_free=(HEAD,),
            )
        return (*rounded, ("quantize_weights", weights))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
    """What is done before rounding.

    Attributes:
        rows: the passes, given what will be rounded to what.
        learns_clip: it learns the share of the range of activations that is kept.
    """

    rows: Callable[[Format], tuple[Row, ...]]
    learns_clip: bool = False


SUPPORT = frozenset({"untie_weights", "center_residual", "fold_norm_scales"})
"""Passes that only make a transform possible: a model that has nothing for them is no refusal."""


def _rotations(matrix: str, head_matrix: str, *, heads: bool, online: bool) -> tuple[Row, ...]:
    rows: list[Row] = [
        ("untie_weights", {}),
        ("fold_norm_scales", {}),
        ("center_residual", {}),
        ("rotate_residual", {"matrix": matrix}),
    ]
    if heads:
        rows.append(("rotate_heads", {"matrix": head_matrix, "rotate_cache": True}))
    if online:
        rows.append(("insert_online_hadamard", {"rotate_cache": True}))
    return tuple(rows)


ROTATE = _rotations("randomized_hadamard", "hadamard", heads=False, online=False)
"""The passes of R1 alone."""

KLT = _rotations("klt", "klt", heads=False, online=False)
"""R1 into principal components, the largest first."""

ROTATIONS: Mapping[str, tuple[bool, bool]] = {
    "R1": (False, False),
    "R1, R2": (True, False),
    "R1, R2, R3, R4": (True, True),
}
"""Sets of rotations by name: with those of heads, with those that are computed online."""

_MATRICES = {
    "KLT": ("klt_hadamard", "klt_hadamard"),
    "Hadamard": ("randomized_hadamard", "hadamard"),
}


def _smooth(fmt: Format) -> tuple[Row, ...]:
    """The best gain for a step for each token; SmoothQuant for one step; AWQ for float."""
    options: dict[str, Any] = {"format": fmt.weights, "through_cache": True, "shortcuts": True}
    if not fmt.bits:
        options.update(objective="awq")
    elif fmt.granularity == "token":
        options.update(objective="gain")
    else:
        options.update(alpha="search", activation_bits=fmt.bits, granularity=fmt.granularity)
    return (("smooth_activations", options),)


def _learned(key: str, **options: Any) -> Callable[[Format], tuple[Row, ...]]:
    """A learned transform, told what it will be rounded to; 8 bits for float activations."""

    def rows(fmt: Format) -> tuple[Row, ...]:
        told: dict[str, Any] = {"weight_format": fmt.weights, "activation_bits": fmt.bits or 8}
        if fmt.bits:
            told["symmetric"] = fmt.symmetric
        return ((key, {**told, **options}),)

    return rows


def _ost(fmt: Format) -> tuple[Row, ...]:
    """As the recipe ``ostquant_w4a4``: the last layer of each MLP turned online, then learning."""
    (learned,) = _learned("learn_rotation", rotate_cache=True, clip=fmt.clip, exclude=(HEAD,))(fmt)
    online: Row = ("insert_online_hadamard", {"which": ("r4",)})
    return (*(row for row in ROTATE if row[0] in SUPPORT), online, learned)


def _fixed(*rows: Row) -> Callable[[Format], tuple[Row, ...]]:
    return lambda fmt: rows


TRANSFORMS: Mapping[str, Transform] = {
    "none": Transform(rows=_fixed()),
    "smooth": Transform(rows=_smooth),
    **{
        f"{kind} {name}": Transform(rows=_fixed(*_rotations(*matrices, heads=heads, online=online)))
        for kind, matrices in _MATRICES.items()
        for name, (heads, online) in ROTATIONS.items()
    },
    "affine": Transform(rows=_learned("migrate_affine", through_cache=True), learns_clip=True),
    "flat": Transform(rows=_learned("flatten_affine"), learns_clip=True),
    "ost": Transform(rows=_ost),
}
"""The rows of the tables."""


def _formats(group: int, small_group: int) -> dict[str, Format]:
    large, small = f"int4_g{group}_asym", f"int4_g{small_group}_asym"
    static = Format(
        weights="int8_channel",
        bits=8,
        granularity="tensor",
        symmetric=False,
        min_token_db=MIN_TOKEN_DB,
    )
    return {
        "W8A8 token": Format(weights="int8_channel", bits=8),
        "W8A8 static": static,
        f"W4 g{group}": Format(weights=large, by_gptq=True),
        f"W3 g{group}": Format(weights=f"int3_g{group}_asym", by_gptq=True),
        f"W4A8 g{group}": Format(weights=large, bits=8, by_gptq=True),
        f"W4A4 g{small_group}": Format(
            weights=small, bits=4, symmetric=False, clip=0.9, by_gptq=True
        ),
    }


FORMATS: Mapping[str, Mapping[str, Format]] = {
    "smollm2": _formats(128, 64),
    "minilm": _formats(128, 64),
    "whisper-tiny-en": _formats(128, 64),
    "digits-vit": _formats(32, 32),
}
"""The columns for each model; the vision transformer is 64 channels wide."""


_LEARNED = frozenset({"affine", "flat", "ost"})
_WHOLE = frozenset({"digits-vit"})
"""Models so small that every cell is measured."""


def is_in_grid(task: str, row: str, column: str) -> bool:
    """Whether a cell is measured: those of large models where they say something new.

    Maps that are learned for what is rounded take long, and earn it where activations have 4 bits;
    sets of some of the rotations are compared there too, and at 8 bits, where rounding is quick.

    Args:
        task: its name.
        row: a name in `TRANSFORMS`.
        column: a name in `FORMATS` of the task.
    """
    if task in _WHOLE or "A4" in column:
        return True
    if row in _LEARNED:
        return False
    some_rotations = row.endswith(("R1", "R1, R2"))
    return not (some_rotations and FORMATS[task][column].by_gptq)


def recipe_of(name: str, rows: Sequence[Row]) -> Recipe:
    """The passes of some rows, under a name.

    Raises:
        RecipeError: there is no such pass, or it does not take the options.
    """
    return Recipe(name=name, steps=tuple(_pass(key, options) for key, options in rows))


def _pass(key: str, options: Mapping[str, Any]) -> Pass:
    known = all_passes()
    if key not in known:
        raise RecipeError(
            f"There is no pass {key!r}; the nearest is {nearest_word(key, known)!r}. "
            "`onnxq passes` lists them."
        )
    try:
        return known[key](**options)
    except TypeError as error:
        raise RecipeError(f"Pass {key!r} does not take these options: {error}.") from error
