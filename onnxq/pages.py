"""``python -m onnxq.pages docs``: the parts of pages that are written from the code.

Such a part stands between ``<!-- part NAME -->`` and ``<!-- end -->``; the rest of a page is left
as it is. Distortions take minutes to measure and stay unless ``--distortion`` is given.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxq import catalog
from onnxq.errors import UsageError

__all__ = ["PARTS", "filled", "main", "parts_of"]

_PART = re.compile(r"(<!-- part (?P<name>\w+) -->\n)(?P<text>.*?)(<!-- end -->)", re.S)


def main() -> None:
    """Write the parts of every page of a folder."""
    parser = argparse.ArgumentParser(prog="python -m onnxq.pages", description=__doc__)
    parser.add_argument("folder", type=Path, help="of markdown pages, such as docs")
    parser.add_argument("--distortion", action="store_true", help="measure distortions too")
    options = parser.parse_args()
    for page in sorted(options.folder.rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = filled(before, measured=options.distortion)
        if after != before:
            page.write_text(after, encoding="utf-8")


def filled(page: str, *, measured: bool = False) -> str:
    """The page with its parts as the code says now; measured ones only when asked for.

    Raises:
        UsageError: the page has a part that nothing writes.
    """

    def replaced(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in PARTS and name not in _MEASURED:
            known = ", ".join((*PARTS, *_MEASURED))
            raise UsageError(f"No part of a page is called {name!r}; known: {known}.")
        if name in _MEASURED and not measured:
            return match[0]
        return f"{match[1]}{(PARTS[name] if name in PARTS else _MEASURED[name])()}\n{match[4]}"

    return _PART.sub(replaced, page)


def parts_of(page: str) -> dict[str, str]:
    """The text of each part by name."""
    return {match["name"]: match["text"] for match in _PART.finditer(page)}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0]) if rows else []
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_text(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines) if rows else "(none)"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return str(value)


def _formats() -> str:
    rows = [
        {
            "format": f"`{row['format']}`",
            "family": row["family"],
            "bits per weight": row["bits per weight"],
            "operators": [f"`{name}`" for name in row["operators"]],
        }
        for row in catalog.format_values()
    ]
    return _table(rows)


def _solvers() -> str:
    solvers = {row["family"]: row["solvers"] for row in catalog.format_values()}
    rows = [
        {"family": family, "solvers": [f"`{name}`" for name in names]}
        for family, names in solvers.items()
    ]
    return _table(rows)


def _distortion() -> str:
    rows = catalog.distortion_values()
    for row in rows:
        row["format"] = f"`{row['format']}`"
    return _table(rows)


def _operators() -> str:
    from onnxq.custom_ops.catalog import SPECS

    sections = []
    for row, spec in zip(catalog.operator_values(), SPECS, strict=True):
        call = f"Y = {row['operator']}<{', '.join(row['attributes'])}>({', '.join(row['inputs'])})"
        formats = ", ".join(f"`{name}`" for name in row["formats"])
        lines = [f"### {row['operator']}", f"`{call}`, from opset {row['opset']} on.", ""]
        lines += textwrap.wrap(" ".join(row["summary"].split()), 100)
        lines += ["", f"Formats: {formats}, ...", "", f"Kernels: {_text(row['kernels'])}.", ""]
        lines += ["Its meaning, the function that a model carries:", ""]
        lines += [textwrap.indent(spec.body.strip(), "    "), ""]
        sections.append("\n".join(lines))
    return "\n".join(sections)


def _tensorrt_rules() -> str:
    from onnxq.export.tensorrt_rules import RULES

    return _table(
        [
            {
                "rule": f"`{rule.name}`",
                "what it asks for": rule.sentence,
                "when broken": rule.effect.value,
                "source": rule.source,
            }
            for rule in RULES
        ]
    )


PARTS: Mapping[str, Callable[[], str]] = {
    "formats": _formats,
    "format_solvers": _solvers,
    "operators": _operators,
    "tensorrt_rules": _tensorrt_rules,
}
"""What writes each part."""

_MEASURED: Mapping[str, Callable[[], str]] = {"distortion": _distortion}


if __name__ == "__main__":
    main()
