"""Which sites a recipe means by its name patterns, and by the roles it names."""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir

from onnxq.errors import RecipeError, nearest_word
from onnxq.graph.language_head import language_heads
from onnxq.graph.sites import Site
from onnxq.passes.base import Pass

__all__ = ["HEAD", "is_meant", "is_named", "name_roles", "recipe_refusal"]

HEAD = "@head"
"""In the place of a name pattern: the language head, whatever an exporter called it."""

_ROLES = (HEAD,)


def is_named(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns (``*``, ``?``, ``[...]``; case counts) fits the whole name."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def is_meant(site: Site, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns fits the name of the site, or is its operator type."""
    return any(fnmatch.fnmatchcase(site.name, p) or p == site.kind for p in patterns)


def recipe_refusal(name: str, *, sites: Iterable[str], exclude: Iterable[str]) -> str | None:
    """Why the recipe wants a site left as it is; None when it does not.

    Args:
        name: of the site.
        sites: name patterns of the sites to work on.
        exclude: name patterns of sites to leave, whatever ``sites`` says.
    """
    if is_named(name, exclude):
        return "the recipe excludes it"
    return None if is_named(name, sites) else "the recipe does not name it"


def name_roles(step: Pass, model: ir.Model) -> Pass:
    """The pass with the names of sites in the place of roles such as ``@head``.

    Roles may stand wherever name patterns do: in a tuple, or as a key of a table. The order is
    kept; a role that no site of the model has is left out.

    Args:
        step: as a recipe configures it; returned itself when it names no role.
        model: the model that it is going to work on.

    Raises:
        RecipeError: there is no such role.
    """
    given = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    named = {name: value for name, value in given.items() if _roles_of(value)}
    if not named:
        return step
    for name, value in named.items():
        _check(step, name, _roles_of(value))
    sites = {HEAD: [glob.escape(site.name) for site in language_heads(model)]}
    changed = {name: _with_names(value, sites) for name, value in named.items()}
    return dataclasses.replace(step, **changed)


def _roles_of(value: Any) -> list[str]:
    """The roles in an option that could hold name patterns."""
    if not isinstance(value, tuple | Mapping):
        return []
    return [word for word in value if isinstance(word, str) and word.startswith("@")]


def _check(step: Pass, field: str, roles: Iterable[str]) -> None:
    for role in roles:
        if role not in _ROLES:
            near = nearest_word(role, _ROLES)
            hint = f"; did you mean {near!r}?" if near else f": there is {', '.join(_ROLES)}."
            raise RecipeError(f"{step.key()}.{field} names the role {role!r}, which is none{hint}")


def _with_names(value: Any, sites: Mapping[str, list[str]]) -> Any:
    if isinstance(value, Mapping):
        return {name: chosen for key, chosen in value.items() for name in sites.get(key, [key])}
    return tuple(name for word in value for name in sites.get(word, [word]))
