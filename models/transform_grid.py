"""The grid of ``docs/results.md`` for transforms: what is done before rounding, and how is rounded.

Both are rows of passes with their options, the very ones that recipes are made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxq.errors import RecipeError, nearest_word
from onnxq.passes.base import Pass
from onnxq.passes.recipe import Recipe
from onnxq.passes.registry import all_passes

__all__ = ["FORMATS", "PREPARE", "ROTATIONS", "TRANSFORMS", "Row", "recipe_of"]

Row = tuple[str, dict[str, Any]]
"""Key of a pass and its options."""

PREPARE: tuple[Row, ...] = (
    ("constants_to_initializers", {}),
    ("fold_constants", {}),
    ("convert_opset", {"minimum": 25}),
    ("fuse_layer_norm", {}),
    ("fuse_rms_norm", {}),
    ("fuse_silu", {}),
    ("clean", {}),
)
"""What comes before every set of transforms."""

_R1: Row = ("rotate_residual", {})
_R2: Row = ("rotate_heads", {})
_ONLINE: Row = ("insert_online_hadamard", {})
_KLT: Row = ("rotate_residual", {"kind": "klt"})

TRANSFORMS: Mapping[str, tuple[Row, ...]] = {
    "none": (),
    "smooth": (("smooth_activations", {}),),
    "KLT R1": (_KLT,),
    "KLT R1, R2": (_KLT, _R2),
    "KLT R1, R2, R3, R4": (_KLT, _R2, _ONLINE),
    "Hadamard R1": (_R1,),
    "Hadamard R1, R2": (_R1, _R2),
    "Hadamard R1, R2, R3, R4": (_R1, _R2, _ONLINE),
    "affine": (("migrate_affine", {}),),
    "flat": (("flatten_affine", {}),),
    "ost": (("learn_rotation", {}),),
}
"""The passes of each row of the tables."""

ROTATIONS = ("R1", "R1, R2", "R1, R2, R3, R4")
"""Sets of rotations that rows of both kinds of matrices are named after."""

_HEAD = {
    "overrides": {"*lm_head*": "int8_g64"},
    "data_free": ["*lm_head*"],
}


def _weights(bits: int, group: int) -> Row:
    """GPTQ in groups as in the recipe ``int4_gptq``; a language head in 8 bits."""
    options = {"format": f"int{bits}_g{group}_asym_f16", "solver": "gptq", "write": "dequantize"}
    return "quantize_weights", {**options, **_HEAD}


def _activations(bits: int, **options: Any) -> Row:
    return "quantize_activations", {"bits": bits, "exclude": ["*lm_head*"], **options}


_INT8: Row = ("quantize_weights", {"format": "int8_channel", "write": "dequantize"})


def _formats(group: int, small_group: int) -> dict[str, tuple[Row, ...]]:
    return {
        "W8A8 token": (_activations(8), _INT8),
        "W8A8 static": (_activations(8, granularity="tensor", symmetric=False), _INT8),
        f"W4 g{group}": (_weights(4, group),),
        f"W3 g{group}": (_weights(3, group),),
        f"W4A8 g{group}": (_activations(8), _weights(4, group)),
        f"W4A4 g{small_group}": (_activations(4, clip=0.9), _weights(4, small_group)),
    }


FORMATS: Mapping[str, Mapping[str, tuple[Row, ...]]] = {
    "smollm2": _formats(128, 64),
    "minilm": _formats(128, 64),
    "whisper-tiny-en": _formats(128, 64),
    "digits-vit": _formats(32, 32),
}
"""The passes of each column, for each model; the vision transformer is 64 channels wide."""


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
