"""One HTML file with everything in it: no script, style, font or picture comes from elsewhere."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

__all__ = ["render", "write_page"]


def render(template: str, view: Mapping[str, Any]) -> str:
    """Fill in a template of this room; texts are escaped.

    Args:
        template: name of the file.
        view: what it shows, by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_part),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(
        style=Markup(_part("style.css")),
        script=Markup(_part("script.js")),
        version=importlib.metadata.version("onnxq"),
        **view,
    )


def write_page(path: Path, text: str) -> None:
    """Write a page beside its place and move it there, so that no half of one is ever seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _part(name: str) -> str:
    return importlib.resources.files("onnxq.report").joinpath(name).read_text(encoding="utf-8")
