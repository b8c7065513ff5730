"""``python -m onnxq.models.budget_results docs/budget.md --work DIR``: budgets on SmolLM2.

Four tables, every cell a JSON file, so that an interrupted run goes on where it stopped:

- random mixes: 20 mixes, each with a distribution over formats of its own, the perplexity that the
  sum of the losses predicts against the measured one;
- budgets: the best mix at a few numbers of bits, against formats used alike everywhere;
- what `onnxq quantize --bits` writes for the same budgets, measured as it is run;
- budgets of latency, on MiniLM (`onnxq.models.budget_latency`): for these nothing else should run.

The first two store every layer by GPTQ on statistics of the float model and run the decoded weights
in float, so that a layer is solved once for all mixes; layers are whole there. What is written has
layers split by what their output channels matter (`split_outputs`), as the recipe ``budget`` does.
``--protocol`` takes the tokens of calibration and evaluation from a file, such as the one that the
figures of peers were measured on.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.budget.account import uniform_mixes
from onnxq.budget.menu import Option, SiteMenu
from onnxq.budget.plan import Problem, solve
from onnxq.budget.policy import load_policy
from onnxq.budget.problem import planned
from onnxq.budget.request import Request
from onnxq.budget.run import with_mix
from onnxq.evaluate.perplexity import perplexity
from onnxq.graph import load, save
from onnxq.models.budget_latency import LatencyBudgets
from onnxq.models.budget_library import Library
from onnxq.models.budget_page import page_of
from onnxq.models.point_results import ROTATED
from onnxq.models.result_cells import Feeds, keep, kept
from onnxq.models.smollm2 import SmolLm2, _feeds, encode
from onnxq.models.transform_grid import PREPARE, recipe_of
from onnxq.models.wikipedia import calibration_tokens, evaluation_tokens
from onnxq.passes.base import no_progress
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.recipe import Recipe
from onnxq.passes.runner import run_recipe
from onnxq.passes.site_patterns import HEAD
from onnxq.runtime import open_session

__all__ = ["BUDGETS", "BudgetResults", "main", "random_mix"]

BUDGETS = (4.25, 3.25, 2.523, 2.5)
"""Bits per weight of the mixes; a trellis of 2.5 bits everywhere takes 2.523 with its scales."""
RANDOM = 20
RANDOM_FORMATS = (
    "trellis2_hyb_l12",
    "trellis2.5_hyb_l12",
    "trellis3_hyb_l12",
    "trellis4_hyb_l13",
    "int5_channel",
    "int6_channel",
)
MEASURE = "marginal"
_CALIBRATION = 32


def row() -> QuantizeWeights:
    """The row that the budget is spent on: that of the recipe ``budget``."""
    return QuantizeWeights(
        format="trellis2_hyb_l12",
        write="operator",
        overrides={HEAD: "int8_g64"},
        data_free=(HEAD,),
        solver="gptq",
    )


def random_mix(problem: Problem, number: int) -> dict[str, str]:
    """A distribution over formats drawn flat, then a format for every site from it."""
    rng = np.random.default_rng(number)
    shares = rng.dirichlet(np.ones(len(RANDOM_FORMATS)))
    return {m.site: str(rng.choice(RANDOM_FORMATS, p=shares)) for m in problem.menus}


@dataclasses.dataclass(frozen=True)
class BudgetResults:
    """The measurements, in a folder.

    Attributes:
        work: the folder.
        calibration: token ids ``[windows, tokens]``.
        evaluation: token ids ``[windows, tokens]``.
        protocol: where they come from, for the page.
    """

    work: Path
    calibration: np.ndarray
    evaluation: np.ndarray
    protocol: str

    @property
    def rotated(self) -> Path:
        """The float model, rotated, packed projections split; built at first use."""
        path = self.work / "rotated" / "model.onnx"
        if not path.exists():
            task = SmolLm2()
            built = task.built(self.work)
            feeds = _feeds(built, self._windows(4))
            recipe = recipe_of("rotated", (*PREPARE, *ROTATED, ("split_projections", {})))
            done = run_recipe(load(built["model"]), recipe, samples=feeds["model"], check="off")
            save(done.model, path)
        return path

    @property
    def split(self) -> Path:
        """The rotated model, its layers split by what their output channels matter."""
        path = self.work / "split" / "model.onnx"
        if not path.exists():
            recipe = recipe_of("split", (("split_outputs", {}),))
            samples = self.feeds["model"]
            done = run_recipe(load(self.rotated), recipe, samples=samples, check="off")
            save(done.model, path)
        return path

    @property
    def feeds(self) -> Feeds:
        """Inputs to calibrate on."""
        return _feeds({"model": self.rotated}, self._windows(_CALIBRATION))

    def _windows(self, count: int) -> np.ndarray:
        """So many windows, spread over all: neighbours are of one article, and tell little more."""
        spread = np.linspace(0, len(self.calibration), count, endpoint=False).astype(int)
        windows: np.ndarray = self.calibration[spread]
        return windows

    @property
    def latencies(self) -> LatencyBudgets:
        """Budgets of latency, on MiniLM."""
        return LatencyBudgets(self.work / "minilm")

    def problem(self, *, split: bool = False) -> Problem:
        """Menus with losses, by the measure `MEASURE`, of whole layers or of those `split`."""
        path = self.work / f"problem-{'split-' if split else ''}{MEASURE}.json"
        found = kept(path)
        if found is None:
            plan = planned(
                load(self.split if split else self.rotated),
                row(),
                Request(bits=3.0),
                load_policy("default"),
                samples=self.feeds["model"],
                measure=MEASURE,
                progress=no_progress,
            )
            found = dataclasses.asdict(plan.problem)
            keep(path, {**found, "shared": sorted(found["shared"])})
            found = kept(path) or {}
        menus = tuple(
            SiteMenu(**{**menu, "options": tuple(Option(**o) for o in menu["options"])})
            for menu in found["menus"]
        )
        groups = tuple(tuple(group) for group in found["groups"])
        names = ("fixed_bytes", "sure_bytes", "loss_name", "measure")
        rest = {name: found[name] for name in names}
        return Problem(menus=menus, groups=groups, shared=frozenset(found["shared"]), **rest)

    def mixes(self, problem: Problem) -> dict[str, dict[str, str]]:
        """Every mix of the first two tables by name."""
        found = {f"random{i}": random_mix(problem, i) for i in range(RANDOM)}
        for name in RANDOM_FORMATS[:4]:
            found[f"uniform-{name}"] = dict(uniform_mixes(problem)[name].formats)
        for bits in BUDGETS:
            found[f"mix-{bits:g}"] = dict(solve(problem, Request(bits=bits)).formats)
        return found

    def written_mixes(self) -> dict[str, tuple[dict[str, str], bool]]:
        """What is written, by name, and whether of split layers: mixes are, single formats not."""
        whole, split = self.problem(), self.problem(split=True)
        mixes = {f"written-mix-{b:g}": solve(split, Request(bits=b)).formats for b in BUDGETS}
        single = {
            f"written-uniform-{n}": uniform_mixes(whole)[n].formats for n in RANDOM_FORMATS[:4]
        }
        return {
            **{name: (dict(formats), True) for name, formats in mixes.items()},
            **{name: (dict(formats), False) for name, formats in single.items()},
        }

    def assembled(self, library: Library, name: str, mix: Mapping[str, str]) -> None:
        """Measure the perplexity of decoded weights in float, unless it is there."""
        if self.cell(name, mix) is not None:
            return
        with open_session(library.model(mix)) as session:
            measured = perplexity(session, self.evaluation)
        values = {"loss": measured.loss, "perplexity": measured.perplexity, "mix": dict(mix)}
        keep(self._path(name), values)

    def written(self, name: str, mix: Mapping[str, str], model: Path) -> None:
        """Measure the perplexity of what the recipe writes for a mix, unless it is there."""
        if self.cell(name, mix) is not None:
            return
        recipe = Recipe(name="mix", steps=(with_mix(row(), mix),))
        done = run_recipe(load(model), recipe, samples=self.feeds["model"], check="off")
        with open_session(done.model) as session:
            measured = perplexity(session, self.evaluation)
        sites = [s for s in done.steps[-1].report.changed if s.site in mix]
        nbytes = sum(s.nbytes or 0 for s in sites)
        values = {"perplexity": measured.perplexity, "nbytes": nbytes, "mix": dict(mix)}
        keep(self._path(name), values)

    def cell(self, name: str, mix: Mapping[str, str]) -> dict[str, Any] | None:
        """A finished cell of this mix."""
        found = kept(self._path(name))
        return found if found is not None and found["mix"] == dict(mix) else None

    def _path(self, name: str) -> Path:
        return self.work / "cells" / f"{name}.json"

    def float_loss(self) -> float:
        """The loss of the float model."""
        path = self.work / "cells" / "float.json"
        found = kept(path)
        if found is None:
            with open_session(self.rotated) as session:
                loss = perplexity(session, self.evaluation).loss
            keep(path, {"loss": loss})
            found = {"loss": loss}
        return float(found["loss"])

    def measure(self, only: str | None = None, names: Sequence[str] = ()) -> None:
        """The cells that are asked for and not there; see the module docstring.

        Args:
            only: ``random``, ``uniform``, ``mix``, ``written`` or ``latency``; everything when
                None.
            names: of mixes; all of that kind when empty.
        """
        library = Library(self.work / "lib", self.rotated, lambda: self.feeds["model"])
        if only in (None, "latency"):
            self.latencies.measure()
        if only == "latency":
            return
        for name, mix in self.mixes(self.problem()).items():
            if names and name not in names:
                continue
            if only is None or name.startswith(only):
                self.assembled(library, name, mix)
        if only not in (None, "written"):
            return
        for name, (mix, is_split) in self.written_mixes().items():
            if not names or name in names:
                self.written(name, mix, self.split if is_split else self.rotated)

    def finished(self) -> dict[str, Any]:
        """All cells that are there, with what was predicted; and the float model."""
        found: dict[str, Any] = {}
        problems = {is_split: self.problem(split=is_split) for is_split in (False, True)}
        every = {name: (mix, False) for name, mix in self.mixes(problems[False]).items()}
        for name, (mix, is_split) in {**every, **self.written_mixes()}.items():
            cell = self.cell(name, mix)
            if cell is not None:
                found[name] = {**cell, **told(problems[is_split], mix)}
        found["latency"] = self.latencies.finished()
        found["float"] = self.float_loss()
        return found


def told(problem: Problem, mix: Mapping[str, str]) -> dict[str, float]:
    """Bits per weight and predicted loss of a mix."""
    menus = [m for m in problem.menus if m.counted]
    chosen = [(m, next(o for o in m.options if o.format == mix[m.site])) for m in menus]
    return {
        "bits": 8 * sum(o.nbytes for _, o in chosen) / sum(m.weights for m in menus),
        "predicted": sum(o.loss for _, o in chosen),
    }


def main() -> None:
    """Measure what is missing, then write the part of the page and its picture."""
    parser = argparse.ArgumentParser(
        prog="python -m onnxq.models.budget_results", description=__doc__
    )
    parser.add_argument("page", type=Path, help="docs/budget.md")
    parser.add_argument("--work", type=Path, required=True, help="folder of finished cells")
    parser.add_argument("--protocol", type=Path, help="tokens: .npz with eval and calibration")
    parser.add_argument(
        "--only", choices=("random", "uniform", "mix", "written", "latency", "page")
    )
    parser.add_argument("--names", nargs="*", default=(), help="of mixes, such as mix-2.5")
    options = parser.parse_args()
    if options.protocol is None:
        calibration = calibration_tokens(encode, windows=4 * _CALIBRATION, window=512)
        evaluation = evaluation_tokens(encode, windows=16, window=512)
        about = "the project's own text of Wikipedia"
    else:
        data = np.load(options.protocol)
        calibration, evaluation = data["calibration"], data["eval"]
        about = "the tokens that the figures of llama.cpp were measured on"
    results = BudgetResults(options.work, calibration, evaluation, about)
    if options.only != "page":
        results.measure(options.only, options.names)
    page_of(options.page, results.finished(), about, peers=options.protocol is not None)


if __name__ == "__main__":
    main()
