"""The page ``docs/targets.md``: when to take which target, every cell in short, then sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from onnxq.export.targets import TARGETS, target_class
from onnxq.models.result_store import measured_on
from onnxq.models.target_cells import FORMS, forms_of

__all__ = ["WHEN", "targets_page"]

Cells = Mapping[tuple[str, str, str, str], Mapping[str, Any]]

WHEN: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "onnxruntime-cpu": ("onnxruntime-cpu", "servers and desktops with x86-64 processors"),
        "onnxruntime-cuda": (
            "onnxruntime-cuda",
            "NVIDIA GPUs without building engines; weights of 4 or 8 bits",
        ),
        "genai": ("genai", "text generation on the CPU, with tokenizer and cache managed"),
        "mobile": ("mobile", "phones: one `.ort` file for CPU, XNNPACK, NNAPI or CoreML"),
        "arm64": ("arm64", "Linux on 64-bit ARM: servers, Raspberry Pi, the CPU of Jetson"),
        "tensorrt": ("tensorrt", "the fastest on NVIDIA GPUs of data centres and Jetson"),
        "tensorrt-rtx": (
            "tensorrt",
            "GeForce and RTX GPUs of users: engines built ahead, on any machine",
        ),
        "web": ("web", "a page that runs the model in the browser, nothing installed"),
    }
)
"""Page in ``docs/targets``, and when to take the target."""

_NAMES = re.compile(r"'[^']*'|\d[\d.]*")
"""What differs from cell to cell in one and the same sentence."""
_PATHS = re.compile(r"/\S+/([^/\s]+)")
"""Of the machine that it was measured on."""
_LONGEST = 600


def targets_page(cells: Cells) -> str:
    """The markdown page.

    Args:
        cells: by model, role, form and target, as `onnxq.models.target_cells.measure_cell` gives
            them.
    """
    return "\n".join(
        [
            *_head(),
            *_table(cells),
            "",
            measured_on(cells.values()),
            "",
            *_refusals(cells),
            "",
            *_rules(cells),
            "",
        ]
    )


def _head() -> Iterator[str]:
    yield "# Targets"
    yield ""
    yield (
        "`onnxq targets` lists them, `onnxq check ARTIFACT --target NAME` says what one will do "
        "with each site, `onnxq build ARTIFACT --target NAME -o FOLDER` writes what is deployed."
    )
    yield ""
    yield "| target | what runs | take it for |"
    yield "|---|---|---|"
    for name in TARGETS:
        page, when = WHEN[name]
        yield f"| [`{name}`](targets/{page}.md) | {target_class(name).title} | {when} |"
    yield ""
    yield (
        "[A nightly pipeline](targets/pipeline.md) quantizes, checks, compares and builds in one "
        "script."
    )
    yield ""
    yield "## Every model on every target"
    yield ""
    yield (
        "Written by `python -m onnxq.models.targets_results docs/targets.md` (part of `make "
        "results`); finished cells lie beside it, in `targets.json`. A form is a recipe, about "
        "what targets take and not about accuracy ([results](results.md)): a few calibration "
        "samples, no site left in float for its noise (`insert_qdq.min_output_db=0`)"
        + "".join(
            f"; `{name}` is `{form.recipe}` with `{form.settings[0]}`"
            for name, form in FORMS.items()
            if form.recipe not in (name, None)
        )
        + "."
    )
    yield ""
    yield (
        "A cell: size of the built folder, with all that is deployed; signal to noise (dB) and "
        "largest relative error of its worst output, computed by the target's runtime on held-back "
        "real inputs, beside the artifact in ONNX Runtime on this CPU with all kernels (*same*: "
        "bit for bit); *clean*, or how many sites break a rule of `onnxq check`. –: the form is "
        "not meant for the target. A page of the web holds 14.5 MB of onnxruntime-web. Formats "
        "whose kernels round activations to int8 (`int4`, `w4a8`) are computed with float "
        "activations where the runtime has no such kernel: 30 to 60 dB are that rounding."
    )
    yield ""


def _table(cells: Cells) -> Iterator[str]:
    yield "| model | form | " + " | ".join(f"`{name}`" for name in TARGETS) + " |"
    yield "|---|---|" + "---|" * len(TARGETS)
    for name, role, form in dict.fromkeys(key[:3] for key in cells):
        label = f"`{name}`" + ("" if role == "model" else f" {role}")
        refused = (name, role, form, "recipe") in cells
        row = [
            "no artifact"
            if refused
            else _cell(cells.get((name, role, form, target)))
            if target in forms_of(name).get(form, ())
            else "–"
            for target in TARGETS
        ]
        yield f"| {label} | `{form}` | " + " | ".join(row) + " |"


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "not measured"
    count = sum(cell.get("unclean", {}).values())
    clean = f"{count} unclean" if count else "clean"
    if "refused" in cell:
        return f"refused; {clean}" if count else "refused"
    return f"{cell['bytes'] / 1e6:.1f} MB; {_ran(cell)}; {clean}"


def _ran(cell: Mapping[str, Any]) -> str:
    if "not_run" in cell:
        return "not run"
    if cell["equal"]:
        return "same"
    if cell["sqnr_db"] is None:
        return "differs"
    return f"{cell['sqnr_db']:.0f} dB, {cell['relative_error']:.0e}"


def _refusals(cells: Cells) -> Iterator[str]:
    """Each sentence once, with the cells that it stands for."""
    for title, key in (("Refused", "refused"), ("Built and not run", "not_run")):
        groups: dict[str, dict[str, list[str]]] = {}
        shown: dict[str, str] = {}
        for (name, role, form, target), cell in cells.items():
            if key not in cell:
                continue
            sentence = _PATHS.sub(r"\1", " ".join(cell[key].split()))
            same = _NAMES.sub("…", sentence)
            shown.setdefault(same, sentence)
            place = f"`{name}`" + ("" if role == "model" else f" {role}") + f" {form}"
            groups.setdefault(same, {}).setdefault(target, []).append(place)
        if groups:
            yield from (f"### {title}", "")
        for same, by_target in groups.items():
            where = "; ".join(
                ("recipe" if target == "recipe" else f"`{target}`") + f": {', '.join(places)}"
                for target, places in by_target.items()
            )
            yield f"- {shown[same][:_LONGEST]} ({where})"
        if groups:
            yield ""


def _rules(cells: Cells) -> Iterator[str]:
    """The rules of `check` that some artifact does not keep."""
    broken: dict[tuple[str, str], dict[str, int]] = {}
    for (name, _, form, target), cell in cells.items():
        for rule, count in cell.get("unclean", {}).items():
            models = broken.setdefault((target, rule), {})
            place = f"`{name}` {form}"
            models[place] = models.get(place, 0) + count
    yield "### Not clean, by rule"
    yield ""
    yield "| target | rule | sites |"
    yield "|---|---|---|"
    for (target, rule), models in sorted(broken.items()):
        counts = ", ".join(f"{place} {count}" for place, count in models.items())
        yield f"| `{target}` | `{rule}` | {counts} |"
