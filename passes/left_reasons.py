"""Reasons why sites were left alone, as kinds: without the names and figures of one site."""

from __future__ import annotations

import re

__all__ = ["reason_kind"]

_PARTICULARS = re.compile(r"'[^']+'|[\d.]+(?= dB at)")
"""Names and figures that differ from site to site in one and the same reason."""


def reason_kind(reason: str) -> str:
    """The reason with … in the place of names and figures: the same for sites of one kind."""
    return _PARTICULARS.sub("…", reason)
