"""What an artifact says of itself, as plain values for the page: nothing is run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxq.errors import ArtifactError, UsageError
from onnxq.evaluate.size import file_bytes, weight_bits
from onnxq.export.artifact import MODEL_NAME
from onnxq.graph import find_sites, load
from onnxq.graph.reading import find_model_file
from onnxq.graph.sites import Site
from onnxq.passes.base import Promise
from onnxq.passes.recipe import recipe_from
from onnxq.passes.recipe_text import recipe_text
from onnxq.passes.registry import all_passes

__all__ = ["Facts", "read_facts"]

_BUDGET = "onnxq-budget.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """One artifact, or one model with nothing known of how it was made.

    Attributes:
        name: of its folder.
        folder: where it is.
        report: its ``onnxq.json``; None when there is none.
        budget: its ``onnxq-budget.json``; None when it was made for no budget.
        nbytes: of the model file and its data.
        bits: stored bits per weight of all sites; None without sites.
        original: path of the model it was made from, when it is there.
        original_bytes: of that model.
        sites: a row for each quantized site, in graph order: ``site``, ``format``, ``bits``,
            ``error``, ``output_error``, ``nbytes``, ``solver``, ``step`` (which pass), ``notes``.
        left: a row for each site that no pass quantized: ``site`` and ``reason``.
        ranges: a row for each site whose outliers were measured: ``site``, ``before``, ``after``
            (greatest magnitude of a token over its root mean square), ``by`` (the passes).
        steps: a row for each pass that changed something.
        recipe: as TOML; None when not known.
    """

    name: str
    folder: Path
    report: Mapping[str, Any] | None
    budget: Mapping[str, Any] | None
    nbytes: int
    bits: float | None
    original: Path | None
    original_bytes: int | None
    sites: Sequence[Mapping[str, Any]] = ()
    left: Sequence[Mapping[str, Any]] = ()
    ranges: Sequence[Mapping[str, Any]] = ()
    steps: Sequence[Mapping[str, Any]] = ()
    recipe: str | None = None


def read_facts(
    artifact: str | Path, report: Mapping[str, Any] | None, original: Path | None
) -> Facts:
    """Read one artifact.

    Args:
        artifact: its folder, or any model.
        report: its ``onnxq.json``, as `onnxq.provenance.artifact_report` gives it.
        original: the model it was made from; None when it is not there.

    Raises:
        ArtifactError: ``onnxq-budget.json`` cannot be read.
        OnnxqError: the model cannot be read.
    """
    file = find_model_file(Path(artifact))
    model = load(file)
    found = find_sites(model)
    order = [site.name for site in found]
    sites, left = _site_rows(report or {"steps": []})
    if report is None:
        sites = [_stored(site) for site in found if site.already is not None]
    named = file.parent.name if file.name == MODEL_NAME else file.stem
    return Facts(
        name=named or str(artifact),
        folder=file.parent,
        report=report,
        budget=_budget(file.parent),
        nbytes=file_bytes(file, model),
        bits=weight_bits(model).bits_per_weight,
        original=original,
        original_bytes=None if original is None else file_bytes(original, load(original)),
        sites=_in_order(sites, order),
        left=left,
        ranges=_ranges(report or {"steps": []}),
        steps=_steps(report or {"steps": []}),
        recipe=None if report is None else recipe_text(recipe_from(report["recipe"])),
    )


def distinct_names(found: Sequence[Facts]) -> list[Facts]:
    """The same artifacts with names that tell them apart.

    Raises:
        UsageError: one artifact is given twice.
    """
    folders = [one.folder.absolute() for one in found]
    if len(set(folders)) < len(folders):
        twice = next(str(one) for one in folders if folders.count(one) > 1)
        raise UsageError(f"{twice!r} is given twice: give each artifact once.")
    names = [one.name for one in found]
    return [
        one
        if names.count(one.name) == 1
        else dataclasses.replace(one, name=f"{one.folder.absolute().parent.name}/{one.name}")
        for one in found
    ]


def _budget(folder: Path) -> Mapping[str, Any] | None:
    path = folder / _BUDGET
    if not path.exists():
        return None
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Quantize the model again.") from error
    return found


def _is_quantizing(use: str) -> bool:
    known = all_passes().get(use)
    return known is not None and known.promise is Promise.CLOSE


def _site_rows(
    report: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Sites that a quantizing pass changed, and those that all of them left."""
    done: dict[str, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    for number, step in enumerate(report["steps"]):
        if not _is_quantizing(step["use"]):
            continue
        for site in step["sites"]:
            name = site["site"]
            if site["reason"]:
                reasons[name] = site["reason"]
                continue
            row = done.setdefault(name, {"site": name, "notes": [], "steps": []})
            row["steps"].append(number)
            _merge(row, site, step["use"])
    left = [{"site": n, "reason": reason} for n, reason in reasons.items() if n not in done]
    return [row for row in done.values() if row.get("format") or row["notes"]], left


def _stored(site: Site) -> dict[str, Any]:
    """A row for a quantized site of a model that nothing is told of."""
    return {"site": site.name, "format": site.already, "notes": [], "steps": []}


def _merge(row: dict[str, Any], site: Mapping[str, Any], use: str) -> None:
    """Add what one pass says of a site; of several the one that stores the weight counts."""
    holds_weight = site.get("nbytes") is not None or "format" not in row
    if holds_weight and site.get("format"):
        keys = ("format", "bits", "error", "output_error", "nbytes", "solver")
        row |= {key: site.get(key) for key in keys}
        row["step"] = use
    elif site.get("format"):
        row["notes"].append(f"{use}: {site['format']}")
    if site.get("note"):
        row["notes"].append(site["note"])


def _in_order(rows: list[dict[str, Any]], order: Sequence[str]) -> list[dict[str, Any]]:
    """In graph order, where the sites have kept their names; else as the passes went."""
    at = {name: number for number, name in enumerate(order)}
    if all(row["site"] in at for row in rows):
        return sorted(rows, key=lambda row: at[row["site"]])
    return rows


def _ranges(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The first figure before any pass and the last after all of them, site by site."""
    found: dict[str, dict[str, Any]] = {}
    for step in report["steps"]:
        for site in (step.get("outliers") or {}).get("sites", ()):
            sides = site.get("activation")
            if not sides:
                continue
            row = found.setdefault(
                site["site"],
                {"site": site["site"], "before": sides["before"]["row_max_to_rms"], "by": []},
            )
            row["after"] = sides["after"]["row_max_to_rms"]
            row["by"].append(step["use"])
    return [row for row in found.values() if row["before"] and row["after"]]


def _steps(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for step in report["steps"]:
        changed = [site for site in step["sites"] if not site["reason"]]
        if not step["modified"] and not step["notes"]:
            continue
        rows.append(
            {
                "use": step["use"],
                "changed": len(changed),
                "left": len(step["sites"]) - len(changed),
                "kept": step["kept"],
                "seconds": step["seconds"],
                "notes": step["notes"],
            }
        )
    return rows
