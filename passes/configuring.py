"""Make a frozen dataclass from words a user gave: every key and every type is checked.

Passes are made so from the rows of a recipe, deployment targets from ``--set key=value``.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from onnxq.errors import OnnxqError, RecipeError, UsageError, nearest_word

__all__ = ["configured", "nearest_clause", "options_of", "read_value"]

_Configured = TypeVar("_Configured")


def read_value(text: str) -> Any:
    """Read a value as TOML would; anything that is not TOML is a bare string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def options_of(settings: Sequence[str]) -> dict[str, Any]:
    """Values by key of settings of the form ``key=value``, the last one of a key.

    Raises:
        UsageError: a setting has another form.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key.strip():
            raise UsageError(f"Setting {setting!r} is not of the form key=value.")
        values[key.strip()] = read_value(text)
    return values


def configured(
    cls: type[_Configured],
    values: Mapping[str, Any],
    owner: str,
    error: type[OnnxqError] = RecipeError,
) -> _Configured:
    """An object of a dataclass with some of its fields set.

    Args:
        cls: the dataclass.
        values: of its fields, by name; others keep their default.
        owner: what it is in messages: ``Recipe 'int4': pass 'clean'``.
        error: what is raised.

    Raises:
        OnnxqError: of class ``error``: an unknown key (the nearest one is named), or a value of
            the wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise error(f"{owner} has no key {key!r}{nearest_clause(key, fields)}.")
    return cls(**{k: _typed(owner, k, v, hints[k], error) for k, v in values.items()})


def nearest_clause(word: str, valid: Iterable[str]) -> str:
    """``; did you mean 'x'?`` when a valid word is like it; otherwise empty."""
    match = nearest_word(word, valid)
    return f"; did you mean {match!r}?" if match else ""


def _typed(owner: str, key: str, value: Any, hint: Any, error: type[OnnxqError]) -> Any:
    import pydantic

    try:
        return pydantic.TypeAdapter(hint).validate_python(value)
    except pydantic.ValidationError as found:
        what = found.errors()[0]["msg"]
        raise error(f"{owner}: {key} = {value!r} is not valid: {what}.") from found
