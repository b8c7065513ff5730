"""``python -m onnxq.models.report_results FOLDER --work DIR``: a page for every model of the zoo.

Each model is quantized by one recipe and explained by `onnxq.report`: one page for each of its ONNX
files, and ``index.html`` with a line for each page. A model that the recipe refuses, as one that
comes quantized, is shown beside itself. Artifacts and pages that are finished stay, so an
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxq.errors import OnnxqError
from onnxq.export.artifact import REPORT_NAME, write_artifact
from onnxq.graph import load
from onnxq.model_pair import ModelPair
from onnxq.models.registry import tasks
from onnxq.models.task import Task
from onnxq.passes.recipe import load_recipe
from onnxq.passes.runner import run_recipe
from onnxq.provenance import HELD_BACK, artifact_report
from onnxq.report.making import explain
from onnxq.runtime.cache import cache_folder, file_hash, write_whole

__all__ = ["report_pages"]

RECIPES: Mapping[str, str] = {
    "efficientnet-lite0": "int8_static",
    "pp-ocrv4": "int8_static",
    "silero-vad": "int8_dynamic",
    "digits-vit": "int8_static",
}
"""Of models that are not made of large matrices."""

Feeds = Sequence[Mapping[str, np.ndarray]]


def main() -> None:
    """Write what is missing, then the index."""
    parser = argparse.ArgumentParser(prog="python -m onnxq.models.report_results")
    parser.add_argument("folder", type=Path, help="where the pages go")
    parser.add_argument("--work", type=Path, default=cache_folder() / "results")
    parser.add_argument("--recipe", help="for all models; else int4, or what `RECIPES` says")
    parser.add_argument("--sites", type=int, default=24, help="sites whose effect is measured")
    parser.add_argument("--only", nargs="*", help="names of models; all when not given")
    parser.add_argument("--again", action="store_true", help="write again what is there")
    options = parser.parse_args()
    said: dict[str, str] = {}
    for name, task in tasks().items():
        if options.only and name not in options.only:
            continue
        pages = report_pages(
            task,
            options.work / name,
            options.folder,
            recipe=options.recipe or RECIPES.get(name, "int4"),
            sites=options.sites,
            again=options.again,
        )
        said |= {f"{name}-{role}": text for role, text in pages.items()}
    write_whole(options.folder / "index.html", _index(options.folder, said))


def _index(folder: Path, said: Mapping[str, str]) -> str:
    """A line for each page that is there, of this run or an earlier one, and what is refused."""
    there = {page.stem for page in folder.glob("*.html")} - {"index"}
    lines = []
    for name in sorted(there | set(said)):
        shown = f'<a href="{name}.html">{name}</a>' if name in there else name
        told = f": {html.escape(said[name])}" if name in said else ""
        lines.append(f"<li>{shown}{told}</li>")
    return f"<!doctype html><meta charset=utf-8><title>Reports</title><ul>{''.join(lines)}</ul>\n"


def report_pages(
    task: Task, work: Path, folder: Path, *, recipe: str, sites: int = 24, again: bool = False
) -> dict[str, str]:
    """The pages of one model.

    Args:
        task: the model with its data.
        work: folder for the float model and the artifacts.
        folder: where the pages go: ``NAME-ROLE.html``.
        recipe: a preset.
        sites: of at most so many sites the effect of restoring them is measured.
        again: write pages that are there once more.

    Returns:
        For each ONNX file of the model, by role, what its page shows; or why there is none.
    """
    work.mkdir(parents=True, exist_ok=True)
    try:
        built = task.built(work)
    except OnnxqError as error:
        return {"model": f"not reported: {error}"}
    said = {}
    for role, path in built.items():
        artifact = work / "reports" / f"{task.name}-{role}-{recipe}"
        page = folder / f"{task.name}-{role}.html"
        refused = ""
        if again or not page.exists():
            calibration, held_back = task.calibration(built)[role], task.held_back(built)[role]
            original = path.parent if path.name == "model.onnx" else path
            try:
                _artifact(path, artifact, recipe, calibration, held_back)
            except OnnxqError as error:
                refused = f": {recipe} refused: {error}"
            made = artifact if (artifact / REPORT_NAME).exists() else original
            pair = ModelPair(
                original=original,
                quantized=made,
                report=artifact_report(made),
                calibration=calibration,
                samples=held_back[:HELD_BACK],
                is_random=False,
            )
            explain(pair, page, sites=sites)
        is_made = (artifact / REPORT_NAME).exists()
        said[role] = f"{task.title}, {recipe if is_made else f'as it comes{refused}'}"
    return said


def _artifact(path: Path, folder: Path, recipe: str, calibration: Feeds, held_back: Feeds) -> None:
    if (folder / REPORT_NAME).exists():
        return
    original = load(path)
    write_artifact(
        run_recipe(original, load_recipe(recipe), samples=calibration),
        folder,
        original=original,
        source={"path": str(path.absolute()), "sha256": {path.name: file_hash(path)}},
        held_back=held_back,
        companions=path.parent,
    )


if __name__ == "__main__":
    main()
