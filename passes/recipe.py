"""A recipe is a list of passes written in TOML; this reads one and checks every word of it.

::

    summary = "Weights in 4 bits, groups of 128"
    sources = ["arXiv:2210.17323"]

    [[pass]]
    use = "quantize_weights"
    format = "int4_g128"

Each ``[[pass]]`` row names a pass by its key and sets its fields; what is not set keeps the
field's default. ``quantize_weights.format=int4_g64`` overrides a field of every row of that pass,
``quantize_weights.solver_options.damping=0.05`` one entry of a field that is a table.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxq.errors import RecipeError
from onnxq.passes.base import Pass
from onnxq.passes.configuring import configured, nearest_clause, read_value
from onnxq.passes.registry import all_passes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named sequence of configured passes.

    Attributes:
        name: the preset's name, or the file's stem.
        summary: one line on what it gives.
        sources: papers and documents behind it.
        steps: the passes in order.
    """

    name: str
    summary: str = ""
    sources: tuple[str, ...] = ()
    steps: tuple[Pass, ...]

    @property
    def needs_samples(self) -> bool:
        """Whether a pass in it must see calibration data."""
        return any(step.needs_samples for step in self.steps)

    @property
    def extra_arrays(self) -> frozenset[str]:
        """Names of arrays that samples carry for a pass, besides the inputs of the model."""
        return frozenset(name for step in self.steps for name in step.extra_arrays)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values: what ``onnxq.json`` keeps."""
        return {
            "name": self.name,
            "summary": self.summary,
            "sources": list(self.sources),
            "pass": [{"use": step.key(), **step.options()} for step in self.steps],
        }


def preset_names() -> list[str]:
    """The names of the recipes shipped with onnxq, sorted."""
    folder = importlib.resources.files("onnxq.recipes")
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a preset by name or a TOML file by path, then apply ``pass.key=value`` overrides.

    Raises:
        RecipeError: no such preset or file, bad TOML, an unknown pass or key (the nearest valid
            one is named), or a value of the wrong type.
    """
    name, text = _read(source)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"Recipe {name!r} is not valid TOML: {error}") from error
    known = {"summary", "sources", "pass"}
    for key in table:
        if key not in known:
            raise RecipeError(f"Recipe {name!r}: unknown key {key!r}{nearest_clause(key, known)}.")
    rows = table.get("pass", [])
    if not isinstance(rows, list) or not rows:
        raise RecipeError(f"Recipe {name!r} has no [[pass]] rows: add at least one pass to run.")
    rows = [dict(row) for row in rows]
    for override in overrides:
        _override(name, rows, override)
    return Recipe(
        name=name,
        summary=table.get("summary", ""),
        sources=tuple(table.get("sources", ())),
        steps=tuple(_build(name, row) for row in rows),
    )


def recipe_from(table: Mapping[str, Any]) -> Recipe:
    """The recipe that `Recipe.to_dict` gave the plain values of, as ``onnxq.json`` keeps it.

    Raises:
        RecipeError: a pass or an option of it is not there in this version of onnxq.
    """
    name = str(table.get("name", "recipe"))
    rows = [{k: v for k, v in row.items() if v is not None} for row in table["pass"]]
    return Recipe(
        name=name,
        summary=table.get("summary", ""),
        sources=tuple(table.get("sources", ())),
        steps=tuple(_build(name, row) for row in rows),
    )


def _read(source: str | Path) -> tuple[str, str]:
    path = Path(source)
    if path.suffix == ".toml":
        try:
            return path.stem, path.read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"Recipe file {path} cannot be read: {error.strerror}.") from error
    names = preset_names()
    if str(source) not in names:
        raise RecipeError(
            f"There is no recipe {str(source)!r}{nearest_clause(str(source), names)}. "
            "`onnxq recipes` lists them; a file of your own must end in .toml."
        )
    preset = importlib.resources.files("onnxq.recipes") / f"{source}.toml"
    return str(source), preset.read_text(encoding="utf-8")


def _override(recipe: str, rows: list[dict[str, Any]], override: str) -> None:
    target, separator, text = override.partition("=")
    use, dot, key = target.strip().partition(".")
    if not separator or not dot or not key:
        raise RecipeError(
            f"Override {override!r} is not of the form pass.key=value, "
            "for example quantize_weights.format=int4_g64."
        )
    mine = [row for row in rows if row.get("use") == use]
    if not mine:
        uses = [str(row.get("use")) for row in rows]
        raise RecipeError(f"Recipe {recipe!r} runs no pass {use!r}{nearest_clause(use, uses)}.")
    key, _, inner = key.partition(".")
    for row in mine:
        table = row.get(key, {})
        if inner and not isinstance(table, dict):
            raise RecipeError(
                f"Override {override!r}: {use}.{key} is {table!r}, which has no entry {inner!r}."
            )
        row[key] = {**table, inner: read_value(text)} if inner else read_value(text)


def _build(recipe: str, row: dict[str, Any]) -> Pass:
    row = dict(row)
    use = row.pop("use", None)
    passes = all_passes()
    if use not in passes:
        raise RecipeError(
            f"Recipe {recipe!r}: unknown pass {use!r}{nearest_clause(str(use), passes)}. "
            "`onnxq passes` lists them."
        )
    return configured(passes[use], row, f"Recipe {recipe!r}: pass {use!r}")
