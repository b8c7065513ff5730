"""Finished measurements of ``docs/results.md`` beside the page, in one JSON file.

A work folder is of one machine and may be lost with it; hours of measuring are not. Before a run
the cells of the file that the work folder lacks are put into it; after it all of them are written
back. Each cell says on which machine and on which day it was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onnxq.models.result_cells import keep_as_is, kept
from onnxq.runtime.cache import write_whole

__all__ = ["gather_cells", "measured_on", "restore_cells"]


def restore_cells(store: Path, work: Path) -> None:
    """Put the cells of ``store`` into ``work`` where it has none of that name.

    Args:
        store: what `gather_cells` wrote; nothing happens when it is not there.
        work: folder of finished measurements.
    """
    if not store.exists():
        return
    for name, cell in json.loads(store.read_text(encoding="utf-8")).items():
        if not (work / name).exists():
            keep_as_is(work / name, cell)


def gather_cells(work: Path, store: Path, parts: Iterable[str], files: Iterable[str]) -> None:
    """Write all finished cells into ``store``, one a line, in the order of their names.

    Args:
        work: folder of finished measurements, a folder in it for each model.
        store: the file; written at once.
        parts: folders of cells in the folder of a model.
        files: names of cells beside them, without ``.json``.
    """
    paths = [path for name in files for path in work.glob(f"*/{name}.json")]
    paths += [path for part in parts for path in work.glob(f"*/{part}/*.json")]
    cells = {str(path.relative_to(work)): kept(path) for path in sorted(paths)}
    lines = [f"{json.dumps(name)}: {json.dumps(cell)}" for name, cell in cells.items()]
    write_whole(store, "{\n" + ",\n".join(lines) + "\n}\n")


def measured_on(cells: Iterable[Mapping[str, Any]]) -> str:
    """A sentence: on which machines the cells were measured, and when; empty when none says."""
    days: dict[str, set[str]] = {}
    for cell in cells:
        if "machine" in cell:
            days.setdefault(cell["machine"], set()).add(cell["date"])
    told = [f"{name} ({', '.join(sorted(when))})" for name, when in sorted(days.items())]
    return f"Measured on {'; '.join(told)}." if told else ""
