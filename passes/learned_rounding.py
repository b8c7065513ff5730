"""Solvers that learn: how `quantize_weights` finds them and runs them.

A learned rounding looks at the inputs and outputs of a whole block, not at the inputs of one site,
and trains through the block with torch; see `onnxq.learning.rounding`. torch is imported when such
a solver is named, and not before.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt
import onnx_ir as ir

from onnxq.errors import CalibrationError, MissingDependency, RecipeError, nearest_word
from onnxq.formats import Arrays, IntFormat
from onnxq.graph.sites import Site
from onnxq.graph.topology import Topology
from onnxq.passes.base import Context
from onnxq.solvers.nearest import Search, nearest
from onnxq.solvers.registry import Solver, solver, solvers

if TYPE_CHECKING:
    from onnxq.learning.rounding import RoundingResult

__all__ = ["LEARNED", "LearnedCodes", "all_solvers", "find_solver", "learn_codes"]

Array = npt.NDArray[Any]

LEARNED = ("adaround", "discquant", "flexround", "gsq", "lrq")
"""Names of the solvers that learn."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedCodes:
    """What was learned.

    Attributes:
        arrays: by name of the site.
        notes: by name of the site: its block and the loss before and after, or why nothing was
            learned for it.
        remarks: on what happened otherwise than asked.
    """

    arrays: Mapping[str, Arrays]
    notes: Mapping[str, str]
    remarks: tuple[str, ...]


def all_solvers() -> dict[str, Solver]:
    """Every solver by name; those that learn only where torch is installed."""
    try:
        learned = {name: find_solver(name) for name in LEARNED}
    except MissingDependency:
        learned = {}
    return {**solvers(), **learned}


def find_solver(name: str) -> Solver:
    """A solver by name, learned ones among them.

    Raises:
        RecipeError: there is none; the nearest name is suggested.
        MissingDependency: it learns, and torch is not installed.
    """
    if name in LEARNED:
        from onnxq.learning.rounding import METHODS

        method: Callable[..., Any] = METHODS[name]  # its options are those of the solver
        options = {field.name: field.default for field in dataclasses.fields(METHODS[name])}
        return Solver(name=name, solve=method, needs=frozenset({"block"}), options=options)
    known = (*solvers(), *LEARNED)
    if name not in known:
        near = nearest_word(name, known)
        hint = f"did you mean {near!r}? " if near else ""
        raise RecipeError(f"There is no solver {name!r}; {hint}Known: {', '.join(known)}.")
    return solver(name)


def learn_codes(
    model: ir.Model,
    formats: Mapping[str, IntFormat],
    sites: Sequence[Site],
    context: Context,
    *,
    solver: Solver,
    options: Mapping[str, Any],
    search: Search,
    inputs: Literal["quantized", "float"],
    samples: int,
    seed: int,
    described: Sequence[object],
) -> LearnedCodes:
    """Learn the codes of ``sites`` block by block.

    Args:
        model: left as it is.
        formats: the format of each site, by name.
        sites: the sites to learn.
        context: its samples are the calibration data.
        solver: one of `LEARNED`.
        options: its options, checked.
        search: how the scales are found that learning begins with.
        inputs: what a block reads.
        samples: at most how many.
        seed: of whatever is drawn.
        described: all of these as plain values, for the keys of finished blocks.

    Raises:
        CalibrationError: there are no samples, or they do not fit the model.
        UnsupportedGraph: an operator of a block that torch does not run here.
    """
    from onnxq.learning.finished_blocks import FinishedBlocks
    from onnxq.learning.rounding import METHODS, learn_rounding

    if context.samples is None:
        raise CalibrationError(
            f"Solver {solver.name!r} needs calibration data, and the recipe was run without: give "
            "some (a folder of .npz files, texts, images or audio), or set solver=nearest."
        )
    topology = Topology(model)
    shared = {site.name for site in topology.sites if topology.shared(site).is_shared}

    def start(site: Site, rows: Array, fmt: IntFormat) -> Arrays:
        return nearest(rows, fmt, seed=seed, search=search)

    learnt = {site.name: formats[site.name] for site in sites if site.name not in shared}
    finished = FinishedBlocks(context.work, [context.origin, *described], learnt)
    found, remarks = learn_rounding(
        model,
        itertools.islice(iter(context.samples), samples),
        learnt,
        start,
        METHODS[solver.name](**options),
        inputs=inputs,
        seed=seed,
        finished=finished,
        progress=context.progress,
    )
    notes = {site.name: _note(found.get(site.name), site.name in shared) for site in sites}
    arrays = {name: result.arrays for name, result in found.items()}
    return LearnedCodes(arrays=arrays, notes=notes, remarks=(*remarks, *finished.notes))


def _note(result: RoundingResult | None, is_shared: bool) -> str:
    if result is not None:
        block = result.block
        return (
            f"learned with block {block.name!r}: relative squared error of its outputs "
            f"{block.before:.3g} -> {block.after:.3g}"
        )
    why = "it is outside the blocks that are learned"
    if is_shared:
        why = "its weight is read elsewhere too (run untie_weights first to learn it)"
    return f"rounded by nearest without data: {why}"
