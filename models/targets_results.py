"""``python -m onnxq.models.targets_results docs/targets.md``: all models on all targets.

Finished cells are kept as JSON in a work folder and beside the page, as those of
`onnxq.models.results` are: an interrupted run goes on where it stopped, and one cell is measured
again by deleting its file and its line. Every cell is measured in a process of its own, which may
die.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from onnxq.export.target import DeploymentTarget
from onnxq.export.targets import target_with
from onnxq.export.to_tensorrt import TensorRt, TensorRtRtx
from onnxq.models.registry import task, tasks
from onnxq.models.result_cells import keep, kept
from onnxq.models.result_store import gather_cells, restore_cells
from onnxq.models.target_cells import (
    FORMS,
    forms_of,
    make_artifacts,
    measure_cell,
    refusal_file,
)
from onnxq.models.targets_page import targets_page
from onnxq.models.tensorrt_results import SHAPES
from onnxq.runtime.cache import cache_folder

__all__ = ["main", "target_for"]

_ADA = 89
Cells = dict[tuple[str, str, str, str], dict[str, Any]]
"""By model, role, form and target; a refusal of the recipe stands under the target ``recipe``."""


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m onnxq.models.targets_results")
    parser.add_argument("page", type=Path, help="the markdown file to write")
    parser.add_argument("--work", type=Path, default=cache_folder() / "targets")
    parser.add_argument("--only", nargs="*", help="measure these models; all when not given")
    parser.add_argument("--forms", nargs="*", choices=list(FORMS), help="measure these forms only")
    parser.add_argument("--targets", nargs="*", help="measure on these targets only")
    parser.add_argument("--finished", action="store_true", help="show what is there, measure none")
    options = parser.parse_args()
    store = options.page.with_suffix(".json")
    restore_cells(store, options.work)
    if not options.finished:
        for name in options.only or tasks():
            for form in options.forms or forms_of(name):
                measure_form(name, form, options.work / name, options.targets)
    gather_cells(options.work, store, FORMS, ())
    options.page.write_text(targets_page(finished_cells(options.work)), encoding="utf-8")


def measure_form(name: str, form: str, work: Path, wanted: Collection[str] | None = None) -> None:
    """All cells of a form of a model that are not there yet.

    Args:
        name: of the task.
        form: see `onnxq.models.target_cells.FORMS`.
        work: folder of the model.
        wanted: targets to measure on; all when None.
    """
    work.mkdir(parents=True, exist_ok=True)
    targets = forms_of(name).get(form, ())
    missing = [
        (role, target)
        for role in task(name).built(work)
        for target in targets
        if wanted is None or target in wanted
        if not refusal_file(work, form, role).exists()
        and not cell_file(work, form, role, target).exists()
    ]
    if not missing:
        return
    _apart(make_artifacts, name, form, work)
    for role, target in missing:
        if refusal_file(work, form, role).exists():
            continue
        start = time.perf_counter()
        try:
            cell = _apart(measure_cell, name, form, role, target_for(name, role, target), work)
        except BrokenProcessPool:
            cell = {"refused": "the process died in the target's builder or runtime"}
        cell["seconds"] = round(time.perf_counter() - start, 1)
        keep(cell_file(work, form, role, target), cell)


def _apart(call: Callable[..., Any], *arguments: Any) -> Any:
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        return pool.submit(call, *arguments).result()


def target_for(name: str, role: str, target: str) -> DeploymentTarget:
    """A target with the options that a model needs there."""
    shapes = SHAPES.get((name, role), {})
    if target == TensorRtRtx.name:
        return TensorRtRtx(shapes=shapes, capabilities=(_ADA,))
    return TensorRt(shapes=shapes) if target == TensorRt.name else target_with(target)


def cell_file(work: Path, form: str, role: str, target: str) -> Path:
    """Where a finished cell is kept, in the folder of a model."""
    return work / form / f"{role}-{target}.json"


def finished_cells(work: Path) -> Cells:
    """All cells that are there, in the order of the page."""
    return {key: cell for key, path in _places(work) if (cell := kept(path)) is not None}


def _places(work: Path) -> Iterator[tuple[tuple[str, str, str, str], Path]]:
    for name in tasks():
        for role in _roles(work / name):
            for form, targets in forms_of(name).items():
                yield (name, role, form, "recipe"), refusal_file(work / name, form, role)
                for target in targets:
                    yield (name, role, form, target), cell_file(work / name, form, role, target)


def _roles(work: Path) -> Mapping[str, None]:
    """Roles that any finished cell is of, by the names of the files."""
    files = (path for form in FORMS for path in sorted(work.glob(f"{form}/*.json")))
    return dict.fromkeys(path.stem.split("-", 1)[0] for path in files)


if __name__ == "__main__":
    main()
