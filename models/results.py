"""``python -m onnxq.models.results docs/results.md``: every model of the zoo, measured.

Finished measurements are kept as JSON in a work folder, one file for each model and recipe, so an
interrupted run goes on where it stopped and one figure can be measured again by deleting its file;
all of them lie beside the page too (`onnxq.models.result_store`), for the next machine.
The last parts of the page are of `onnxq.models.solver_results`, `onnxq.models.point_results` and
`onnxq.models.transform_results`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import OnnxqError
from onnxq.evaluate import latency
from onnxq.evaluate.size import file_bytes
from onnxq.export.artifact import Artifact, write_artifact
from onnxq.graph import load
from onnxq.models.point_results import (
    finished_points,
    measure_points,
    point_part,
    point_tasks,
)
from onnxq.models.registry import tasks
from onnxq.models.result_cells import keep, kept
from onnxq.models.result_store import gather_cells, measured_on, restore_cells
from onnxq.models.solver_results import (
    finished_cells,
    measure_solvers,
    solver_part,
    solver_tasks,
)
from onnxq.models.task import Feeds, Metrics, Task
from onnxq.models.transform_page import transform_part
from onnxq.models.transform_results import (
    finished_transforms,
    measure_transforms,
    transform_tasks,
)
from onnxq.passes.left_reasons import reason_kind
from onnxq.passes.recipe import load_recipe
from onnxq.passes.runner import run_recipe
from onnxq.runtime.cache import cache_folder

RECIPES = ("int8_static", "int8", "int4", "int8_dynamic")
_ROUNDS = 15
_PARTS = {
    "solvers": "solvers by formats",
    "points": "formats of points",
    "transforms": "transforms by formats",
}
_OVERRIDES = {("smollm2", "int8_static"): ("insert_qdq.min_output_db=0",)}
"""Switches of single runs: the noise of 151 sites on windows of 512 tokens takes an hour."""


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m onnxq.models.results")
    parser.add_argument("page", type=Path, help="the markdown file to write")
    parser.add_argument("--work", type=Path, default=cache_folder() / "results")
    parser.add_argument("--only", nargs="*", help="names of models; all when not given")
    parser.add_argument("--again", action="store_true", help="measure again what is there")
    for part, what in _PARTS.items():
        parser.add_argument(
            f"--{part}",
            choices=("measure", "finished"),
            default="measure",
            help=f"measure what is missing of {what}, or show what is finished",
        )
    options = parser.parse_args()
    store = options.page.with_suffix(".json")
    restore_cells(store, options.work)
    results = {}
    for name, task in tasks().items():
        if options.only and name not in options.only:
            continue
        results[name] = measure(task, options.work / name, again=options.again)
    parts: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    for part, known, run, finished in (
        ("solvers", solver_tasks(), measure_solvers, finished_cells),
        ("points", point_tasks(), measure_points, finished_points),
        ("transforms", transform_tasks(), measure_transforms, finished_transforms),
    ):
        for name in (name for name in known if name in results):
            is_there = "refused" not in results[name]["source"]
            if is_there and getattr(options, part) == "measure":
                found = run(known[name], options.work / name, again=options.again)
            else:
                found = finished(known[name], options.work / name)
            parts[part][name] = found
    gather_cells(options.work, store, _PARTS, ("source", *RECIPES))
    options.page.write_text(page(results, **parts), encoding="utf-8")


def measure(task: Task, work: Path, *, again: bool = False) -> dict[str, Any]:
    """All measurements of one model: the source, then each recipe; failures are kept as sentences.

    Args:
        task: the model, its data and its metric.
        work: folder for models and finished measurements.
        again: ignore finished measurements.
    """
    work.mkdir(parents=True, exist_ok=True)
    job = _Job(task, work)
    result: dict[str, Any] = {"title": task.title, "primary": task.primary}
    result["source"] = _kept(work / "source.json", again, lambda: _source(job))
    for recipe in RECIPES:
        result[recipe] = _kept(
            work / f"{recipe}.json", again, lambda name=recipe: _quantized(job, name)
        )
    return result


def _kept(path: Path, again: bool, run: Any) -> dict[str, Any]:
    found = None if again else kept(path)
    if found is not None:
        return found
    start = time.perf_counter()
    try:
        value = run()
    except OnnxqError as error:
        value = {"refused": f"{type(error).__name__}: {error}"}
    value["minutes"] = round((time.perf_counter() - start) / 60, 2)
    keep(path, value)
    return dict(kept(path) or {})


@dataclasses.dataclass(frozen=True)
class _Job:
    """One model in its work folder; samples are made once, when the first recipe needs them."""

    task: Task
    work: Path

    @functools.cached_property
    def built(self) -> dict[str, Path]:
        return self.task.built(self.work)

    @functools.cached_property
    def calibration(self) -> dict[str, list[Feeds]]:
        return self.task.calibration(self.built)

    @functools.cached_property
    def held_back(self) -> dict[str, list[Feeds]]:
        return self.task.held_back(self.built)


def _source(job: _Job) -> dict[str, Any]:
    return {"metrics": job.task.evaluate(job.built), "megabytes": _megabytes(job.built.values())}


def _quantized(job: _Job, recipe: str) -> dict[str, Any]:
    task, built = job.task, job.built
    overrides = _OVERRIDES.get((task.name, recipe), ())
    chosen = load_recipe(recipe, overrides)
    artifacts = {}
    for role, path in built.items():
        original = load(path)
        result = run_recipe(original, chosen, samples=job.calibration[role])
        artifacts[role] = write_artifact(
            result,
            job.work / recipe / role,
            original=original,
            source={"task": task.name, "role": role},
            held_back=job.held_back[role],
            companions=path.parent,
        )
    files = {role: artifact.model for role, artifact in artifacts.items()}
    metrics: Metrics = task.evaluate(files, source=built)
    return {
        "metrics": metrics,
        "overrides": list(overrides),
        "megabytes": sum(artifact.nbytes for artifact in artifacts.values()) / 1e6,
        "latency_ratio": _latency_ratio(built, files, job.held_back),
        **_sites(artifacts.values()),
    }


def _latency_ratio(
    source: Mapping[str, Path],
    quantized: Mapping[str, Path],
    feeds: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
) -> dict[str, float]:
    """Quantized over source for each file: median of the ratios of alternating rounds."""
    return {
        role: latency([path, quantized[role]], feeds[role][:1], rounds=_ROUNDS).ratio
        for role, path in source.items()
    }


def _sites(artifacts: Any) -> dict[str, Any]:
    done, left = 0, Counter[str]()
    for artifact in artifacts:
        last = _last_word(artifact)
        done += sum(1 for site in last if not site["reason"])
        left.update(reason_kind(site["reason"]) for site in last if site["reason"])
    return {"quantized": done, "left": dict(left.most_common())}


def _last_word(artifact: Artifact) -> list[dict[str, Any]]:
    """The site rows of the step that quantized: every recipe measured here ends with it."""
    return list(artifact.report["steps"][-1]["sites"])


def _megabytes(paths: Any) -> float:
    return sum(file_bytes(path, load(path)) for path in paths) / 1e6


def page(
    results: Mapping[str, Mapping[str, Any]],
    *,
    solvers: Mapping[str, Mapping[str, Any]],
    points: Mapping[str, Mapping[str, Any]],
    transforms: Mapping[str, Mapping[str, Any]],
) -> str:
    """The markdown page of all results: recipes, solvers, formats of points, transforms."""
    lines = [
        "# Results",
        "",
        "Written by `make results` (`python -m onnxq.models.results docs/results.md`).",
        "",
        "Finished measurements lie beside it, in `results.json`. Latency is quantized / float32 of "
        "the same process, alternating, on one held-back input for each ONNX file of the model "
        "(below 1 is faster). SmolLM2's linear weights come from a Q4_1 file: the baseline is the "
        "dequantized model.",
        "",
    ]
    for name, result in results.items():
        lines += _section(name, result)
    lines += solver_part(solvers)
    lines += point_part(points)
    lines += transform_part(transforms)
    return "\n".join(lines) + "\n"


def _section(name: str, result: Mapping[str, Any]) -> list[str]:
    source = result["source"]
    lines = [f"## {result['title']} (`{name}`)", ""]
    if "refused" in source:
        return [*lines, f"Not measured: {source['refused']}", ""]
    primary = result["primary"]
    metrics = source["metrics"]
    columns = [key for key, value in metrics.items() if isinstance(value, (int, float))]
    columns = [primary, *(key for key in columns if key != primary)]
    lines.append("| model | " + " | ".join(columns) + " | MB | latency | sites | left |")
    lines.append("|---|" + "---:|" * (len(columns) + 4))
    lines.append(_row("float32", metrics, columns, [f"{source['megabytes']:.1f}", "1", "–", "–"]))
    reasons: dict[str, dict[str, int]] = {}
    refusals = []
    for recipe in RECIPES:
        measured = result[recipe]
        if "refused" in measured:
            refusals.append(f"- `{recipe}` refused: {measured['refused']}")
            continue
        ratio = ", ".join(f"{value:.2f}" for value in measured["latency_ratio"].values())
        left = sum(measured["left"].values())
        rest = [f"{measured['megabytes']:.1f}", ratio, str(measured["quantized"]), str(left)]
        label = " ".join([f"`{recipe}`", *(f"`{text}`" for text in measured["overrides"])])
        lines.append(_row(label, measured["metrics"], columns, rest))
        reasons[recipe] = measured["left"]
    lines += ["", measured_on([source, *(result[recipe] for recipe in RECIPES)]), "", *refusals]
    for recipe, counts in reasons.items():
        for reason, count in list(counts.items())[:6]:
            lines.append(f"- `{recipe}` left {count}: {reason}")
    return [*lines, ""]


def _row(name: str, metrics: Mapping[str, Any], columns: Sequence[str], rest: list[str]) -> str:
    values = [_number(metrics.get(column)) for column in columns]
    return f"| {name} | " + " | ".join([*values, *rest]) + " |"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "–"


if __name__ == "__main__":
    main()
