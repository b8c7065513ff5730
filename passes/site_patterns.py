"""Which sites a recipe means by its name patterns."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

__all__ = ["is_named", "recipe_refusal"]


def is_named(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns (``*``, ``?``, ``[...]``; case counts) fits the whole name."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


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
