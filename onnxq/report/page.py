"""One HTML file with everything in it: no script, style, font or picture comes from elsewhere."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup

__all__ = ["render"]


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


def _part(name: str) -> str:
    return importlib.resources.files("onnxq.report").joinpath(name).read_text(encoding="utf-8")
