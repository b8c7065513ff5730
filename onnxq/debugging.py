"""The verb ``onnxq debug A B``: where a quantized model parts from its float model, and what to do.

First the place: sites are taken from the quantized model one after the other, in graph order, and
a binary search finds the one whose replacement takes the loss over a threshold. Then the cure: the
smallest set of sites to leave in float so that the loss stays under a bound, as rows of a recipe.

Both replace sites of the *float twin* (`onnxq.provenance`) by those of the quantized model, in one
session that holds both ways of every site (`onnxq.evaluate.hybrid`), whatever the formats are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxq.errors import UsageError
from onnxq.evaluate.fallback import (
    Parting,
    Restored,
    parting_place,
    single_effects,
    smallest_restored,
)
from onnxq.evaluate.hybrid import Hybrid
from onnxq.evaluate.losses import PairedLoss
from onnxq.model_pair import ModelPair, open_pair
from onnxq.passes.base import Progress, no_progress
from onnxq.passes.recipe import Recipe, recipe_from
from onnxq.passes.recipe_text import recipe_text, row_text, sites_excluded
from onnxq.provenance import changed_sites

__all__ = ["Debugged", "debug", "parse_loss"]

_AGREES = 0.1
"""The part of the loss that the hybrid of all places may miss without a word."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Debugged:
    """What was found.

    Attributes:
        loss: what the loss is, in words.
        quantized_loss: of the quantized model as it is written.
        replaced_loss: of the float twin with every place replaced: what the search can explain.
        twin_loss: of the float twin: what transforms before rounding cost.
        places: how many places differ and can be replaced.
        fixed: places that differ and cannot be replaced, each with its reason.
        parting: where the loss goes over the threshold; None when it never does.
        effects: how much loss goes when one place alone is restored, the greatest first; empty
            without ``max_loss``.
        max_loss: what was to be reached.
        restored: the smallest set to restore; None when nothing was asked or nothing is enough.
        rows: rows of the artifact's recipe, changed so that the restored places stay in float.
        recipe: the file that the whole changed recipe was written to.
        notes: what a reader should know.
    """

    loss: str
    quantized_loss: float
    replaced_loss: float
    twin_loss: float
    places: int
    fixed: Mapping[str, str]
    parting: Parting | None
    effects: Mapping[str, float]
    max_loss: float | None
    restored: Restored | None
    rows: tuple[str, ...] = ()
    recipe: str | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def debug(
    original: str | Path,
    quantized: str | Path,
    *,
    data: Any = None,
    max_loss: float | str | None = None,
    threshold: float | str | None = None,
    loss: str = "auto",
    output: str | None = None,
    tokenizer: str | Path | None = None,
    window: int | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    progress: Progress = no_progress,
) -> Debugged:
    """Find the first place where two forms of a model part, and what to leave in float.

    Args:
        original: the float model: file or folder.
        quantized: a quantized form of it; an artifact's recipe makes the float twin and gives the
            rows to change.
        data: inputs as in `onnxq.quantize`; those of the artifact when None, else random ones.
        max_loss: find the smallest set of places to restore to float so that the loss does not
            exceed this; a number, a percentage ``"1%"``, or for noise an SQNR ``"30dB"``.
        threshold: of the first search; None takes ``max_loss``, else half the loss there is.
        loss: one of `onnxq.evaluate.losses.LOSSES`, or ``auto``.
        output: the output to judge.
        tokenizer: for a text; as in `onnxq.quantize`.
        window: of a text, tokens in a sample; None takes what the artifact was made with.
        limit: samples at most; None takes what the artifact was made with.
        out: TOML file for the changed recipe.
        progress: called with (what, done, total).

    Raises:
        UsageError: arguments that do not go together.
        UnsupportedGraph: the two models differ nowhere, or are no two forms of one model.
        OnnxqError: with a sentence that says what, where, and what to do next.
    """
    pair = open_pair(
        original, quantized, data=data, tokenizer=tokenizer, window=window, limit=limit
    )
    bound = None if max_loss is None else parse_loss(max_loss)
    if out is not None and (bound is None or pair.report is None):
        raise UsageError(
            "A recipe can be written when --max-loss says what to reach and the quantized model is "
            "an artifact of onnxq, whose onnxq.json holds its recipe."
        )
    measured = pair.loss(loss, output)
    whole = pair.quantized_loss(measured)
    with pair.hybrid() as hybrid:
        return _search(pair, hybrid, measured, whole, bound, threshold, out, progress)


def parse_loss(text: float | str) -> float:
    """A loss from a number, ``1%`` (0.01) or, of noise, an SQNR in dB (``20dB`` is 0.01).

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(text, int | float):
        return float(text)
    word = text.strip()
    try:
        if word.lower().endswith("db"):
            return float(10.0 ** (-float(word[:-2]) / 10.0))
        return float(word[:-1]) / 100.0 if word.endswith("%") else float(word)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is no loss: give a number such as 0.01, a percentage 1%, or 20dB."
        ) from error


def _search(
    pair: ModelPair,
    hybrid: Hybrid,
    measured: PairedLoss,
    whole: float,
    bound: float | None,
    threshold: float | str | None,
    out: str | Path | None,
    progress: Progress,
) -> Debugged:
    places = list(hybrid.places)
    everything = frozenset(places)

    def loss(restored: frozenset[str]) -> float:
        chosen = everything - restored
        return measured.of(lambda sample, names: hybrid.run(sample, chosen, names))

    twin, replaced = loss(everything), loss(frozenset())
    limit = _threshold(threshold, bound, replaced)
    parting = parting_place(places, loss, limit, progress)
    effects: Mapping[str, float] = {}
    restored = None
    if bound is not None:
        effects = single_effects(places, loss, progress)
        restored = smallest_restored(effects, loss, bound, progress=progress)
    rows, recipe, notes = _cure(pair, restored, out)
    return Debugged(
        loss=measured.unit,
        quantized_loss=whole,
        replaced_loss=replaced,
        twin_loss=twin,
        places=len(places),
        fixed=hybrid.fixed,
        parting=parting,
        effects=effects,
        max_loss=bound,
        restored=restored,
        rows=rows,
        recipe=recipe,
        notes=(*_notes(pair, measured, (whole, replaced, twin), bound, restored), *notes),
    )


def _threshold(given: float | str | None, bound: float | None, replaced: float) -> float:
    if given is not None:
        return parse_loss(given)
    if bound is not None:
        return bound
    return replaced / 2 if math.isfinite(replaced) else 1.0


def _notes(
    pair: ModelPair,
    measured: PairedLoss,
    losses: tuple[float, float, float],
    bound: float | None,
    restored: Restored | None,
) -> list[str]:
    """What a reader should know, of the losses of the quantized model, the places and the twin."""
    whole, replaced, twin = losses
    notes = []
    if pair.is_random:
        notes.append("measured on random inputs: give --data for figures that mean something")
    if not _agree(whole, replaced):
        plain = pair.quantized_loss(measured, optimize=False)
        notes.append(
            f"the places together have the loss {replaced:.4g}, the quantized model {whole:.4g}, "
            + (
                "because ONNX Runtime's optimizations compute it otherwise (such as with rounded "
                "activations)"
                if _agree(plain, replaced)
                else "so something else differs too, or --data are not what it was made with"
            )
        )
    if bound is not None and restored is None:
        notes.append(
            f"no set of places is enough: with all of them in float the loss is still {twin:.4g}"
        )
    return notes


def _agree(first: float, second: float) -> bool:
    return first == second or abs(first - second) <= _AGREES * max(first, second)


def _cure(
    pair: ModelPair, restored: Restored | None, out: str | Path | None
) -> tuple[tuple[str, ...], str | None, list[str]]:
    """The changed rows of the recipe, where the whole was written, and what could not be done."""
    if restored is None or pair.report is None:
        return (), None, []
    recipe = recipe_from(pair.report["recipe"])
    changed, missing = sites_excluded(recipe, changed_sites(pair.report), restored.places)
    notes = [f"no pass of the recipe can leave {name!r} in float" for name in missing]
    rows = _changed_rows(recipe, changed)
    if out is None:
        return rows, None, notes
    left = f"; {len(restored.places)} sites left in float" if restored.places else ""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = recipe_text(dataclasses.replace(changed, summary=recipe.summary + left))
    path.write_text(text, encoding="utf-8")
    return rows, str(path), notes


def _changed_rows(before: Recipe, after: Recipe) -> tuple[str, ...]:
    pairs: Sequence[tuple[Any, Any]] = list(zip(before.steps, after.steps, strict=True))
    return tuple(row_text(new) for old, new in pairs if new != old)
