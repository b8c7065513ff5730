"""Long work on the command line: how many workers, where finished pieces are kept, what to free."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from onnxq.console import Json, say_aside, show
from onnxq.errors import OnnxqError, UsageError
from onnxq.runtime.remote import is_remote
from onnxq.runtime.remote_output import local_output
from onnxq.runtime.run_log import heaviest, profile_seconds
from onnxq.runtime.work_folder import WorkFolder, refuse_other, work_folders
from onnxq.runtime.workers import Backend, OnFailure, Workers

__all__ = ["app", "beside", "chosen_workers", "local_place", "show_profiles", "work_beside"]

app = typer.Typer()

_WORTH_SHOWING = 0.05
"""Of all that was profiled; stages that took less are not printed."""


def chosen_workers(
    count: int, threads: int | None, backend: str, address: str | None, on_failure: str
) -> Workers:
    """The workers that options of the command line ask for.

    Raises:
        UsageError: there is no such backend, or a number below 1.
    """
    for option, given, known in (
        ("--backend", backend, get_args(Backend)),
        ("--on-failure", on_failure, get_args(OnFailure)),
    ):
        if given not in known:
            raise UsageError(f"There is no {option} {given!r}: give one of {', '.join(known)}.")
    return Workers(
        count=count,
        threads=threads,
        backend=backend,  # type: ignore[arg-type]
        address=address,
        on_failure=on_failure,  # type: ignore[arg-type]
    )


def local_place(out: str) -> Path:
    """The folder that a run writes for ``--out``: itself, or where what goes to a URL is built."""
    return local_output(out) if is_remote(out) else Path(out)


def beside(out: Path, what: str) -> Path:
    """Where a run keeps what is not part of its artifact: ``OUT.work``, ``OUT.log.jsonl``."""
    return out.with_name(f"{out.name}.{what}")


def show_profiles(folder: Path) -> None:
    """Print the ten functions that took most in each stage that is no trifle, on standard error."""
    from onnxq import tables

    found = {file: profile_seconds(file) for file in sorted(folder.glob("*.pstats"))}
    for file, seconds in found.items():
        if seconds >= _WORTH_SHOWING * sum(found.values()):
            title = f"{file} ({seconds:.1f} s)"
            say_aside(functools.partial(tables.table, rows=heaviest(file), title=title))


@contextlib.contextmanager
def work_beside(out: Path, work: Path | None, resume: bool) -> Iterator[Path | None]:
    """The folder that keeps finished pieces while a run lasts.

    Args:
        out: what the run writes. Without ``work`` the folder is ``OUT.work``, and it goes once the
            run is done.
        work: a folder of the user's choice, which stays.
        resume: False keeps nothing.

    Raises:
        UsageError: the folder holds other things, or both options were given.
    """
    if not resume:
        if work is not None:
            raise UsageError("--work keeps finished sites and --no-resume does not: give one.")
        yield None
        return
    folder = work or beside(out, "work")
    refuse_other(folder)
    try:
        yield folder
    except (OnnxqError, KeyboardInterrupt) as error:
        pieces = sum(count for _, count, _ in work_folders(folder)) if folder.is_dir() else 0
        if pieces:
            error.add_note(f"({pieces} finished pieces are in {folder}: the same command goes on.)")
        elif work is None and folder.is_dir():
            WorkFolder(folder).remove()
        raise
    if work is None and folder.is_dir():
        WorkFolder(folder).remove()


@app.command()
def clean(
    folder: Annotated[Path, typer.Argument(help="Look in and below this folder.")] = Path(),
    remove: Annotated[bool, typer.Option(help="Remove them, but those in use.")] = False,
    as_json: Json = False,
) -> None:
    """List folders of finished work, of runs that were killed or that keep it, and free them."""
    if not folder.is_dir():
        raise UsageError(f"{str(folder)!r} is no folder: name one to look in.")
    rows: list[dict[str, Any]] = []
    for path, pieces, size in work_folders(folder):
        days = (time.time() - path.stat().st_mtime) / 86400
        row = {"folder": str(path), "pieces": pieces, "MB": round(size / 1e6, 1)}
        rows.append({**row, "days": round(days, 1), "state": _removed(path) if remove else "kept"})
    show(rows, as_json, _render)


def _removed(path: Path) -> str:
    try:
        work = WorkFolder(path)
    except OnnxqError as error:
        return f"left: {error}"
    work.remove()
    return "removed"


def _render(console: Any, rows: list[dict[str, Any]]) -> None:
    from onnxq import tables

    if not rows:
        console.print("No folder of finished work here.")
        return
    tables.table(console, rows, title="finished work")
