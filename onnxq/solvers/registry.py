"""Every solver by the name a recipe gives it: what it needs to be told, and its options.

A solver is a pure function ``solve(weight, fmt, statistics=None, *, seed=0, threads=None,
**options) -> Arrays``. Its own options are its keyword arguments, read here from the signature, so
that a recipe's ``solver_options`` are checked before any work.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from onnxq.errors import RecipeError, nearest_word
from onnxq.formats import Arrays

__all__ = ["Need", "Solver", "solver", "solvers"]

Need = Literal["hessian", "drift", "block"]
"""What must be gathered for a solver: E[x xᵀ]; the drift of asymmetric calibration as well; or the
inputs and outputs of the whole block, for solvers that learn by gradients."""

_SHARED = ("weight", "fmt", "statistics", "seed", "threads")

_NEEDS: Mapping[str, frozenset[Need]] = {
    "nearest": frozenset(),
    "easyquant": frozenset(),
    "gptq": frozenset({"hessian"}),
    "gptaq": frozenset({"hessian", "drift"}),
    "coordinate_descent": frozenset({"hessian"}),
    "decoupleq": frozenset({"hessian"}),
    "beam_search": frozenset({"hessian"}),
    "lnq": frozenset({"hessian"}),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solver:
    """One solver.

    Attributes:
        name: its name in a recipe, the name of its module and of the function in it.
        solve: the function.
        needs: what must be gathered on calibration data; empty when it needs none.
        options: its own keyword arguments and their defaults.
    """

    name: str
    solve: Callable[..., Arrays]
    needs: frozenset[Need]
    options: Mapping[str, Any]

    def check(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options as the solver takes them, of the right types.

        Raises:
            RecipeError: an unknown option (the nearest valid one is named) or a wrong value.
        """
        import pydantic

        hints = typing.get_type_hints(self.solve)
        checked = {}
        for key, value in options.items():
            if key not in self.options:
                near = nearest_word(key, self.options)
                hint = f"did you mean {near!r}? " if near else ""
                raise RecipeError(
                    f"Solver {self.name!r} has no option {key!r}; {hint}"
                    f"It takes: {', '.join(self.options) or 'none'}."
                )
            try:
                checked[key] = pydantic.TypeAdapter(hints[key]).validate_python(value)
            except pydantic.ValidationError as error:
                what = error.errors()[0]["msg"]
                raise RecipeError(
                    f"Option {key} = {value!r} of solver {self.name!r} is not valid: {what}."
                ) from error
        return checked


def solvers() -> dict[str, Solver]:
    """Every solver by name."""
    return {name: solver(name) for name in _NEEDS}


def solver(name: str) -> Solver:
    """One solver by name.

    Raises:
        RecipeError: there is none; the nearest name is suggested.
    """
    if name in _NEEDS:
        return _solver(name)
    near = nearest_word(name, _NEEDS)
    hint = f"did you mean {near!r}? " if near else ""
    raise RecipeError(f"There is no solver {name!r}; {hint}Known: {', '.join(_NEEDS)}.")


@functools.cache
def _solver(name: str) -> Solver:
    function = getattr(importlib.import_module(f"onnxq.solvers.{name}"), name)
    options = {
        key: parameter.default
        for key, parameter in inspect.signature(function).parameters.items()
        if key not in _SHARED
    }
    return Solver(name=name, solve=function, needs=_NEEDS[name], options=options)
