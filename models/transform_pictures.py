"""``python -m onnxq.models.transform_pictures docs/passes``: a picture for every transform.

Each is drawn from a layer of a real model: the magnitude of every channel before the pass and after
it, for the layer where the tallest channel stood out most. Models are built where the tasks of the
zoo keep them.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxq.calibration.values import visit_values
from onnxq.errors import OnnxqError, UnsupportedGraph
from onnxq.evaluate.channel_picture import Panel, write_picture
from onnxq.graph import find_sites, load
from onnxq.graph.topology import Topology
from onnxq.models.registry import task
from onnxq.models.roles import task_folder
from onnxq.models.task import Task
from onnxq.models.transform_grid import KLT, PREPARE, ROTATE, Row, recipe_of
from onnxq.passes.outlier_picture import activation_panels, weight_panel
from onnxq.passes.runner import run_recipe
from onnxq.passes.site_outliers import (
    ActivationMeters,
    SiteOutliers,
    measure_outliers,
    pair_sites,
)

__all__ = ["PICTURES", "Picture", "draw", "panels_of"]

_SAMPLES = 2
_CALIBRATION = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """Where the picture of a pass comes from.

    Attributes:
        task: name of the model's task.
        options: of the pass.
        before: passes that run first, in both panels.
        shows: ``activation``, what the site reads; ``weight``, by output channel; or ``stream``,
            what a norm reads.
        role: of the file to draw; the last one when None.
        sites: name pattern of the sites, or norms, of which the tallest is drawn.
    """

    task: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    before: tuple[Row, ...] = ()
    shows: Literal["activation", "weight", "stream"] = "activation"
    role: str | None = None
    sites: str = "*"


_QKV = "*qkv_proj*"
_QUERY = "node_MatMul_203*"
"""A query projection of the vision transformer, which reads the stream."""
_BATCH_NORM: Row = ("fold_batch_norm", {})

PICTURES: Mapping[str, Picture] = {
    "smooth_activations": Picture(task="smollm2", sites=_QKV),
    "equalize_layers": Picture(task="efficientnet-lite0", before=(_BATCH_NORM,), shows="weight"),
    "absorb_bias": Picture(
        task="pp-ocrv4", role="recognize", before=(_BATCH_NORM, ("equalize_layers", {}))
    ),
    "reparameterize_norm": Picture(task="digits-vit"),
    "fold_norm_scales": Picture(task="smollm2", before=(("untie_weights", {}),), sites=_QKV),
    "center_residual": Picture(task="whisper-tiny-en", role="encoder", shows="stream"),
    "rotate_residual": Picture(task="smollm2", before=ROTATE[:-1], sites=_QKV),
    "rotate_heads": Picture(task="smollm2", options={"rotate_cache": True}),
    "rotate_weights": Picture(task="minilm", shows="weight"),
    "insert_online_hadamard": Picture(task="smollm2", options={"which": ("r4",)}),
    "flatten_channels": Picture(task="minilm"),
    "split_layer": Picture(task="minilm", shows="weight"),
    "permute_channels": Picture(task="minilm"),
    "split_low_rank": Picture(
        task="digits-vit", options={"sites": (_QUERY,), "multiple": 8}, before=KLT, sites=_QUERY
    ),
    "migrate_affine": Picture(task="digits-vit"),
    "flatten_affine": Picture(task="digits-vit"),
    "learn_rotation": Picture(task="digits-vit", before=ROTATE[:-1]),
}
"""A picture for each transform, by the key of its pass."""


def main() -> None:
    """Draw the pictures asked for; what cannot be drawn is told, and the others go on."""
    parser = argparse.ArgumentParser(prog="python -m onnxq.models.transform_pictures")
    parser.add_argument("folder", type=Path, help="where <key>.svg is written")
    parser.add_argument("--only", nargs="*", choices=PICTURES, help="keys of passes; else all")
    parser.add_argument("--ending", choices=("svg", "html"), default="svg")
    options = parser.parse_args()
    for key in options.only or PICTURES:
        path = options.folder / f"{key}.{options.ending}"
        try:
            draw(key, path)
        except OnnxqError as error:
            sys.stderr.write(f"{key}: {type(error).__name__}: {error}\n")
        else:
            sys.stderr.write(f"{path}\n")


def draw(key: str, path: Path) -> None:
    """Run the pass on its model and write its picture.

    Raises:
        UnsupportedGraph: the pass changed nothing that could be drawn.
        OnnxqError: the model could not be built, or the pass refused.
    """
    picture = PICTURES[key]
    job = task(picture.task)
    title, panels = panels_of(key, picture, job, job.built(task_folder(job.name)))
    across = "output channel" if picture.shows == "weight" else "channel"
    write_picture(path, title, panels, across)


def panels_of(
    key: str, picture: Picture, job: Task, built: Mapping[str, Path]
) -> tuple[str, list[Panel]]:
    """The title and the panels of one picture.

    Args:
        key: of the pass.
        picture: what to draw.
        job: gives the samples.
        built: the float files of the model; the last one is drawn.

    Raises:
        UnsupportedGraph: the pass changed nothing that could be drawn.
    """
    role = picture.role or list(built)[-1]
    samples = job.calibration(built)[role][:_CALIBRATION]
    first = run_recipe(
        load(built[role]), recipe_of("before", (*PREPARE, *picture.before)), samples=samples,
        check="off",
    ).model  # fmt: skip
    result = run_recipe(
        first, recipe_of(key, [(key, dict(picture.options))]), samples=samples, check="off"
    )
    last = result.model
    if picture.shows == "activation":
        found = _tallest_activation(first, last, samples[:_SAMPLES], picture.sites)
    elif picture.shows == "stream":
        found = _tallest_stream(first, last, samples[:_SAMPLES], picture.sites)
    else:
        found = _tallest_weight(first, last, picture.sites)
    if found is None:
        reasons = Counter(site.reason for site in result.steps[-1].report.left)
        told = "; ".join(f"{count} sites: {why}" for why, count in reasons.most_common(3))
        raise UnsupportedGraph(f"{key} changed no {picture.shows} that can be drawn. {told}")
    site, panels = found
    what = "weight of {}" if picture.shows == "weight" else "what {} reads"
    return f"{key} on {job.title.partition(' (')[0]}: {what.format(site)}", panels


def _tallest_activation(
    first: ir.Model, last: ir.Model, samples: Sequence[Mapping[str, np.ndarray]], pattern: str
) -> tuple[str, list[Panel]] | None:
    """The changed or divided activation whose tokens had the greatest max-to-RMS."""
    before, after = (
        measure_outliers(
            model,
            samples,
            sites=[s for s in find_sites(model) if fnmatch.fnmatchcase(s.name, pattern)],
            qsur_columns=0,
        )
        for model in (first, last)
    )
    twins = {old.site: new for old, new in pair_sites(before, after)}
    for old in sorted(before.values(), key=lambda one: -_ratio(one)):
        sides, labels = [old], ["before"]
        if old.site not in twins:  # one site became several, named after it
            parts = [one for one in after.values() if one.site.startswith(f"{old.site}_")]
            sides += parts
            labels += [part.site.removeprefix(f"{old.site}_") + ":" for part in parts]
        elif not _are_alike(old.peaks, twins[old.site].peaks):
            sides.append(twins[old.site])
            labels.append("after")
        panels = activation_panels(sides, labels) if len(sides) > 1 else None
        if panels is not None:
            return old.site, panels
    return None


def _tallest_stream(
    first: ir.Model, last: ir.Model, samples: Sequence[Mapping[str, np.ndarray]], pattern: str
) -> tuple[str, list[Panel]] | None:
    """Of what norms read before and after, that whose tokens had the greatest max-to-RMS."""
    norms = [Topology(model).norms for model in (first, last)]
    names = [{v.name or "": norm.name for norm in found for v in norm.inputs} for found in norms]
    both = [
        name
        for name, norm in names[0].items()
        if name in names[1] and fnmatch.fnmatchcase(norm, pattern)
    ]
    sides: list[dict[str, SiteOutliers]] = []
    for model in (first, last):
        meters = ActivationMeters([(name, -1) for name in both], 0)
        visit_values(model, both, samples, meters)
        sides.append({name: meters.as_site(names[0][name], (name, -1)) for name in both})
    for name in sorted(both, key=lambda name: -_ratio(sides[0][name])):
        pair = [side[name] for side in sides]
        panels = activation_panels(pair, ("before", "after"))
        if panels is not None and not _are_alike(pair[0].peaks, pair[1].peaks):
            return names[0][name], panels
    return None


def _ratio(site: SiteOutliers) -> float:
    return 0.0 if site.activation is None else site.activation.row_max_to_rms


def _tallest_weight(
    first: ir.Model, last: ir.Model, pattern: str
) -> tuple[str, list[Panel]] | None:
    """The changed weight whose output channels differed most: the greatest over the median."""
    after = {site.name: site for site in find_sites(last)}
    found: list[tuple[float, str, list[Panel]]] = []
    for site in find_sites(first):
        twin = after.get(site.name)
        if twin is None or not fnmatch.fnmatchcase(site.name, pattern):
            continue
        if any(one.weight is None or one.refusal for one in (site, twin)):
            continue
        parts = [one for name, one in after.items() if name.startswith(f"{site.name}_part")]
        labels = ["before", "part 1" if parts else "after"]
        labels += [f"part {number}" for number in range(2, len(parts) + 2)]
        sides = zip((site, twin, *parts), labels, strict=True)
        panels = [weight_panel(one, label) for one, label in sides]
        old, new = panels[:2]
        if not site.is_embedding and not _are_alike(old.peaks, new.peaks):
            spread = float(old.peaks.max() / max(np.median(old.peaks), 1e-12))
            found.append((spread, site.name, panels))
    return max(found, key=lambda one: one[0])[1:] if found else None


def _are_alike(old: np.ndarray | None, new: np.ndarray | None) -> bool:
    return (
        old is not None
        and new is not None
        and old.shape == new.shape
        and np.allclose(old, new, rtol=1e-3)
    )


if __name__ == "__main__":
    main()
