"""``python -m onnxq.models.tensorrt_results docs/targets/tensorrt.md``: engines of every model.

Each model of the zoo, in float32, float16, int8, int4 and FP4, is built for TensorRT-RTX, which
needs no GPU; what is refused is told with the sentence of its parser or builder. Quantized forms
are about what TensorRT takes, not about accuracy (see docs/results.md): few samples, no site left
in float.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from onnxq.errors import OnnxqError
from onnxq.export.to_tensorrt import TensorRtRtx
from onnxq.graph import load, save
from onnxq.models.registry import tasks
from onnxq.models.result_cells import keep, kept
from onnxq.passes.recipe import load_recipe
from onnxq.passes.runner import run_recipe
from onnxq.runtime.cache import cache_folder

__all__ = ["FORMS", "main", "measure_cell", "tensorrt_part"]

FORMS: Mapping[str, tuple[str, ...] | None] = {
    "float32": None,
    "float16": None,
    "int8": ("int8_tensorrt", "insert_qdq.min_output_db=0", "insert_qdq.correct_bias=false"),
    "int4": ("int4_tensorrt",),
    "fp4": None,
}
"""Recipe and overrides of each form; None for the model as it is, which
the target rewrites."""

SHAPES: Mapping[tuple[str, str], Mapping[str, tuple[int, int, int]]] = {
    ("pp-ocrv4", "recognize"): {"x.2": (48, 48, 48)},
    ("pp-ocrv4", "direction"): {"x.2": (48, 48, 48), "x.3": (192, 192, 192)},
}
"""Sizes that a model takes and does not state."""

_SAMPLES = 4
_ADA, _BLACKWELL = 89, 120
_PART = re.compile(r"(<!-- measured: tensorrt -->\n).*?(<!-- end of measured -->)", re.S)


def main() -> None:
    """Build what is missing, then write the part of the page."""
    parser = argparse.ArgumentParser(prog="python -m onnxq.models.tensorrt_results")
    parser.add_argument("page", type=Path, help="the markdown file with the part to write")
    parser.add_argument("--work", type=Path, default=cache_folder() / "tensorrt")
    parser.add_argument("--only", nargs="*", help="names of models; all when not given")
    parser.add_argument("--finished", action="store_true", help="show what is built, build nothing")
    options = parser.parse_args()
    cells: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name in tasks():
        if options.only and name not in options.only:
            continue
        for form in FORMS:
            cells |= _form(name, form, options.work / name, options.finished)
    text = options.page.read_text(encoding="utf-8")
    text = _PART.sub(lambda match: f"{match[1]}{tensorrt_part(cells)}\n{match[2]}", text)
    options.page.write_text(text, encoding="utf-8")


def _form(
    name: str, form: str, work: Path, finished: bool
) -> dict[tuple[str, str, str], dict[str, Any]]:
    """One form of all files of a model; each in a process of its own, which may die."""
    work.mkdir(parents=True, exist_ok=True)
    found = {}
    for role in _roles(name, work, finished):
        cell = work / f"{role}-{form}.json"
        plain = kept(work / f"{role}-float32.json") or {}
        if "refused" in plain and form != "float32":
            found[name, role, form] = {"refused": f"as in float32: {plain['refused']}"}
            continue
        if kept(cell) is None and not finished:
            with concurrent.futures.ProcessPoolExecutor(1) as pool:
                try:
                    value = pool.submit(measure_cell, name, role, form, work).result()
                except BrokenProcessPool:
                    value = {"refused": "the process died in the builder"}
            keep(cell, value)
        if kept(cell) is not None:
            found[name, role, form] = dict(kept(cell) or {})
    return found


def _roles(name: str, work: Path, finished: bool) -> list[str]:
    if finished:
        return sorted(
            path.name.removesuffix("-float32.json") for path in work.glob("*-float32.json")
        )
    return sorted(tasks()[name].built(work))


def measure_cell(name: str, role: str, form: str, work: Path) -> dict[str, Any]:
    """Build one engine: its account, or why it is refused."""
    task = tasks()[name]
    path = task.built(work)[role]
    target = TensorRtRtx(
        capabilities=(_BLACKWELL if form == "fp4" else _ADA,),
        float16=form == "float16",
        fp4=form == "fp4",
        shapes=SHAPES.get((name, role), {}),
    )
    recipe = FORMS[form]
    try:
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            if recipe is not None:
                model = load(path)
                chosen = load_recipe(recipe[0], recipe[1:])
                samples = None
                if chosen.needs_samples:
                    samples = task.calibration(task.built(work))[role][:_SAMPLES]
                done = run_recipe(model, chosen, samples=samples, check="off")
                path = save(done.model, Path(scratch) / "model.onnx")
            verdicts = target.check(load(path))
            built = target.build(path, Path(scratch))
    except OnnxqError as error:
        return {"refused": str(error)}
    (engine,) = built.values()
    executions = Counter(verdict.execution.value for verdict in verdicts.sites)
    wasted = Counter(verdict.rule for verdict in verdicts.wasted)
    engine.pop("warnings", None)
    return {**engine, "sites": dict(executions), "wasted": dict(wasted)}


def tensorrt_part(cells: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> str:
    """The table of engines, and what was refused with its sentence."""
    lines = [
        "| model | " + " | ".join(FORMS) + " |",
        "|---|" + "---|" * len(FORMS),
    ]
    refusals: list[str] = []
    rows = dict.fromkeys((name, role) for name, role, _ in cells)
    for name, role in rows:
        row = [f"| `{name}` {role}"]
        for form in FORMS:
            cell = cells.get((name, role, form))
            row.append(_cell(cell))
            if cell is not None and "refused" in cell:
                first, *more = str(cell["refused"]).splitlines()
                if first.endswith(":") and more:
                    first = f"{first} {more[0].strip()}"
                if not first.startswith("as in float32"):
                    refusals.append(f"- `{name}` {role}, {form}: {first}")
        lines.append(" | ".join(row) + " |")
    return "\n".join([*lines, "", "Refused:", "", *(refusals or ["- nothing"])])


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    if "refused" in cell:
        return "refused"
    sites = ", ".join(f"{count} {what}" for what, count in cell["sites"].items())
    wasted = sum(cell["wasted"].values())
    return f"{cell['bytes'] / 1e6:.1f} MB; {sites}" + (f"; {wasted} wasted" if wasted else "")


if __name__ == "__main__":
    main()
