"""The row of the recipe that would take the loss of one site away, ready to be copied."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Mapping, Sequence
from typing import Any

from onnxq.passes.base import Pass
from onnxq.passes.recipe import recipe_from
from onnxq.passes.recipe_text import option_text, row_text

__all__ = ["Fix", "site_fix"]

_EIGHT_BITS = "int8_g64"
_FEW = 7.0
"""Bits below which eight of them are the first thing to try."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fix:
    """What to change for one site.

    Attributes:
        what: in words.
        row: the changed ``[[pass]]`` row of the recipe.
        setting: the same as an option of ``onnxq quantize``.
    """

    what: str
    row: str
    setting: str


def site_fix(
    report: Mapping[str, Any], site: Mapping[str, Any], options: Sequence[Mapping[str, Any]] = ()
) -> Fix | None:
    """How to store a site better, or not at all in few bits.

    Args:
        report: of the artifact.
        site: its row in `onnxq.report.facts.Facts.sites`.
        options: of the site in the account of a budget: the least loss among them is taken.

    Returns:
        None when no pass of the recipe takes a word about single sites.
    """
    steps = recipe_from(report["recipe"]).steps
    for number in reversed(site["steps"]):
        step = steps[number]
        better = _better_format(site, options)
        if hasattr(step, "format") and hasattr(step, "overrides") and better is not None:
            overrides = {glob.escape(site["site"]): better, **step.overrides}
            return _fix(step, "overrides", overrides, f"store it as {better}")
        if hasattr(step, "exclude"):
            exclude = (*step.exclude, glob.escape(site["site"]))
            return _fix(step, "exclude", exclude, "leave it in float")
    return None


def _better_format(site: Mapping[str, Any], options: Sequence[Mapping[str, Any]]) -> str | None:
    if options:
        best = min(options, key=lambda option: option["loss"])
        if best["format"] not in (site.get("format"), "float"):
            return str(best["format"])
        return None
    bits = site.get("bits")
    return _EIGHT_BITS if bits is not None and bits < _FEW else None


def _fix(step: Pass, field: str, value: Any, what: str) -> Fix:
    changed = dataclasses.replace(step, **{field: value})
    setting = f"{step.key()}.{field}={option_text(value)}"
    quoted = "'" + setting.replace("'", "'\\''") + "'"
    return Fix(what=what, row=row_text(changed), setting=f"--set {quoted}")
