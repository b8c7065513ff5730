"""A recipe as TOML that reads back as the same recipe; recipes that leave sites in float."""

from __future__ import annotations

import dataclasses
import glob
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from onnxq.passes.base import Pass, Promise
from onnxq.passes.recipe import Recipe

__all__ = ["option_text", "recipe_text", "row_text", "sites_excluded"]

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def recipe_text(recipe: Recipe) -> str:
    """The recipe as a TOML file; options that have their default are left out."""
    head = [f"summary = {option_text(recipe.summary)}"]
    if recipe.sources:
        head.append(f"sources = {option_text(list(recipe.sources))}")
    return "\n\n".join(["\n".join(head), *(row_text(step) for step in recipe.steps)]) + "\n"


def row_text(step: Pass) -> str:
    """One ``[[pass]]`` row, without options that have their default."""
    lines = ["[[pass]]", f"use = {option_text(step.key())}"]
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        if value is not None and value != _default(field):
            lines.append(f"{field.name} = {option_text(value)}")
    return "\n".join(lines)


def option_text(value: Any) -> str:
    """A value as TOML on one line: texts, numbers, booleans, lists and tables of them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        inner = [f"{_key(k)} = {option_text(v)}" for k, v in value.items() if v is not None]
        return "{ " + ", ".join(inner) + " }" if inner else "{}"
    return "[" + ", ".join(option_text(item) for item in value) + "]"


def sites_excluded(
    recipe: Recipe, changed: Sequence[Collection[str]], names: Sequence[str]
) -> tuple[Recipe, list[str]]:
    """A recipe whose quantizing passes leave some sites in float.

    Args:
        recipe: of an artifact.
        changed: for each pass of it, the sites it changed, as `SiteReport.site` names them.
        names: sites to leave.

    Returns:
        The recipe, and those of the sites that no pass with ``exclude`` had changed.
    """
    missing = dict.fromkeys(names)
    steps = []
    for step, sites in zip(recipe.steps, changed, strict=True):
        mine = [name for name in names if name in sites]
        if mine and step.promise is Promise.CLOSE and hasattr(step, "exclude"):
            kept = (*step.exclude, *(glob.escape(name) for name in mine))
            step = dataclasses.replace(step, **{"exclude": tuple(dict.fromkeys(kept))})
            for name in mine:
                missing.pop(name, None)
        steps.append(step)
    return dataclasses.replace(recipe, steps=tuple(steps)), list(missing)


def _key(name: str) -> str:
    return name if name and set(name) <= _BARE else json.dumps(name, ensure_ascii=False)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
