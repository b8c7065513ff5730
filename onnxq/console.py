"""How the command line speaks: progress and refusals on standard error, results on output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import rich.console
import rich.progress
import typer

from onnxq.passes.base import Progress

__all__ = ["Json", "progress_bars", "say_aside", "say_error", "show"]

_output = rich.console.Console()
_errors = rich.console.Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def say_error(error: Exception, heading: str) -> None:
    """Print the sentence of an error, and its notes, under a heading and the name of its class."""
    _errors.print(f"[bold red]{heading}[/] {type(error).__name__}", highlight=False)
    for sentence in (str(error), *getattr(error, "__notes__", ())):
        _errors.print(sentence, markup=False, highlight=False, soft_wrap=True)


def say_aside(render: Callable[[rich.console.Console], None]) -> None:
    """Show, through ``render(console)``, what is no result: on standard error."""
    render(_errors)


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A bar per kind of work on standard error, with the time left."""
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        console=_errors,
        transient=True,
    ) as bars:
        tasks: dict[str, rich.progress.TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield advance


def show(value: Any, as_json: bool, render: Callable[[rich.console.Console, Any], None]) -> None:
    """Print plain values as JSON, or through ``render(console, value)`` as a table."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")
    else:
        render(_output, value)
