"""Which codes a weight gets: rounding to nearest, or a solver fed with statistics of the data.

A solver that needs statistics runs before anything is written: `WeightSolver.gather` walks the
model on the calibration samples, block by block, and each site is solved as its statistics arrive,
so that (in the sequential flow) the sites behind it see what its stored weight really computes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibration.course import unreachable_sites
from onnxq.calibration.samples import Samples
from onnxq.calibration.segment_model import NewWeight
from onnxq.calibration.site_statistics import walk_sites
from onnxq.errors import CalibrationError, OnnxqError, WorkerError
from onnxq.formats import Arrays, Format, IntFormat, PerTensor
from onnxq.graph.orientation import to_rows
from onnxq.graph.site_bias import bias_reader, moved_bias
from onnxq.graph.sites import Site
from onnxq.graph.weights import add_weight, weight_tensor
from onnxq.numerics.rounding import MINMAX, MSE_GRID
from onnxq.passes.base import Context
from onnxq.passes.finished_sites import FinishedSites
from onnxq.passes.gathering import Gathering
from onnxq.passes.kept_columns_writing import keeping_refusal
from onnxq.passes.learned_rounding import learn_codes
from onnxq.passes.site_problems import SiteProblems
from onnxq.passes.site_solving import SiteProblem, SolvedSite, packed, solve_site
from onnxq.passes.weight_layout import weight_of
from onnxq.runtime.run_log import note
from onnxq.solvers.inputs import require_integers
from onnxq.solvers.kept_columns import KeptColumns
from onnxq.solvers.registry import Solver
from onnxq.solvers.registry import solver as named
from onnxq.solvers.statistics import Statistics

__all__ = ["WeightSolver"]

Array = npt.NDArray[Any]


class WeightSolver:
    """Gives every site its codes; one per run of a pass."""

    def __init__(
        self,
        solver: Solver,
        options: Mapping[str, Any],
        *,
        nearest_options: Mapping[str, Any],
        seed: int,
    ) -> None:
        """Use ``solver`` where there are statistics, or it needs none, else round to nearest."""
        self._solver = solver
        self._options = options
        self._seed = seed
        self._data_free = named("nearest")
        self._data_free_options = nearest_options
        self._solved: dict[tuple[object, ...], SolvedSite] = {}
        self._notes: dict[str, str] = {}
        self._shifts: dict[str, Array] = {}
        self.notes: tuple[str, ...] = ()
        """What happened otherwise than asked, for the report of the pass."""
        self._by_nearest: set[str] = set()
        self._failed: dict[tuple[object, ...], str] = {}

    def gather(
        self,
        model: ir.Model,
        formats: Mapping[str, Format],
        sites: Sequence[Site],
        context: Context,
        how: Gathering,
    ) -> None:
        """Solve ``sites`` on the statistics of the calibration samples.

        Args:
            model: left as it is.
            formats: the format of each site, by name.
            sites: the sites to solve; the others keep their float weights meanwhile.
            context: its samples are the calibration data.
            how: which inputs a site sees, and how tokens count.

        Raises:
            CalibrationError: there are no samples, or they do not fit the model.
        """
        if context.samples is None:
            raise CalibrationError(
                f"Solver {self._solver.name!r} needs calibration data, and the recipe was run "
                "without: give some (a folder of .npz files, texts, images or audio), or set "
                "solver=nearest."
            )
        unreachable = unreachable_sites(model, sites)
        for site in sites:
            if (reason := _coupling(site, formats[site.name])) is not None:
                unreachable.setdefault(site.name, reason)
        for name, reason in unreachable.items():
            self._by_nearest.add(name)
            self._notes[name] = f"rounded by {self._data_free.name} without data: {reason}"
        reachable = [site for site in sites if site.name not in unreachable]

        finished = FinishedSites(context, formats, self._described(how), how.flow != "one_shot")
        walk = walk_sites(
            model,
            Samples.of(context.samples, limit=how.samples),
            reachable,
            None,
            together=lambda jobs: self._solve(jobs, formats, how, context, finished),
            known=finished.find,
            flow=how.flow,
            cut=how.cut,
            token_weights=how.token_weights,
            need={*self._solver.needs, "mean"} if how.corrects_bias else self._solver.needs,
            threads=context.workers.threads_here,
            memory=context.memory,
            progress=context.progress,
        )
        self.notes = (*walk.notes, *finished.notes)

    def learn(
        self,
        model: ir.Model,
        formats: Mapping[str, Format],
        sites: Sequence[Site],
        context: Context,
        how: Gathering,
    ) -> None:
        """Learn the codes of ``sites`` through their blocks; arguments and errors as `gather`."""
        name = self._solver.name
        learned = learn_codes(
            model,
            {site.name: require_integers(name, formats[site.name]) for site in sites},
            sites,
            context,
            solver=self._solver,
            options=self._options,
            search=self._data_free_options.get("search", "mse"),
            inputs="float" if how.flow == "one_shot" else "quantized",
            samples=how.samples,
            seed=self._seed,
            described=[*self._described(how), sorted(self._data_free_options.items())],
        )
        self._notes, self.notes = {**self._notes, **learned.notes}, learned.remarks
        for site in sites:
            if (arrays := learned.arrays.get(site.name)) is None:
                self._by_nearest.add(site.name)
                continue
            fmt, shape = formats[site.name], arrays["codes"].shape
            self._solved[_key(site, fmt)] = SolvedSite(arrays=packed(arrays, fmt), shape=shape)

    def round_without_data(self, sites: Sequence[Site]) -> None:
        """Round these to nearest, whatever the solver is."""
        self._by_nearest.update(site.name for site in sites)

    def arrays(self, site: Site, rows: Array, fmt: Format) -> Arrays:
        """Codes and scales of a site: those found by `gather`, or found now without data."""
        solved = self._solved.get(_key(site, fmt))
        if solved is not None:
            return solved.unpacked(fmt)
        if site.name in self._by_nearest:
            return self._data_free.solve(rows, fmt, seed=self._seed, **self._data_free_options)
        return self._solver.solve(rows, fmt, seed=self._seed, **self._options)

    def plain_shrink(self, site: Site, fmt: Format) -> tuple[float, ...] | None:
        """The factor list of a plain rounding to nearest; None when codes come from elsewhere."""
        if _key(site, fmt) in self._solved:
            return None
        is_nearest = site.name in self._by_nearest
        who = self._data_free if is_nearest else self._solver
        options = self._data_free_options if is_nearest else self._options
        grids = {"minmax": MINMAX, "mse": MSE_GRID}
        return grids.get(options.get("search", "minmax")) if who.name == "nearest" else None

    def describe(self, site: Site, fmt: Format) -> dict[str, Any]:
        """What a `SiteReport` says about how the codes of a site were chosen."""
        solved = self._solved.get(_key(site, fmt))
        plain = solved is None and site.name in self._by_nearest
        return {
            "solver": (self._data_free if plain else self._solver).name,
            "output_error": None if solved is None else solved.output_error,
            "note": self._notes.get(site.name),
        }

    def _described(self, how: Gathering) -> list[object]:
        """All that decides the codes of a site besides the model, the samples and the format."""
        gathering = dataclasses.asdict(how)
        return [self._solver.name, sorted(self._options.items()), self._seed, gathering]

    def _solve(
        self,
        jobs: Sequence[tuple[Site, tuple[Statistics, ...]]],
        formats: Mapping[str, Format],
        how: Gathering,
        context: Context,
        finished: FinishedSites,
    ) -> list[NewWeight | None]:
        """Solve sites that do not depend on each other, those that are not finished."""
        new: dict[tuple[object, ...], Site] = {}
        problems: list[Callable[[], SiteProblem]] = []
        again: set[str] = set()
        for site, statistics in jobs:
            fmt = formats[site.name]
            key = _key(site, fmt)
            if key in self._solved or key in self._failed or key in new:
                again.add(site.name)
            elif (found := finished.read(site)) is not None:
                self._columns_to_keep(site, how)
                self._solved[key] = found.kept_in(context.scratch)
                note("site found", site=site.name, format=str(fmt))
            else:
                new[key] = site
                problems.append(
                    functools.partial(self._problem, site, fmt, statistics, how, context)
                )
        keys = list(new)

        def keep(number: int, result: SolvedSite) -> None:
            self._solved[keys[number]] = result.kept_in(context.scratch)
            finished.keep(new[keys[number]], result)
            note(
                "site solved",
                site=new[keys[number]].name,
                format=str(formats[new[keys[number]].name]),
                seconds=round(result.seconds, 6),
                output_error=result.output_error,
            )

        def fail(number: int, error: OnnxqError) -> None:
            self._fail(new[keys[number]], keys[number], error, context)
            finished.stop()

        context.workers.map(solve_site, SiteProblems(problems), keep, fail)
        return [self._new_weight(s, formats[s.name], s.name in again, finished) for s, _ in jobs]

    def _fail(
        self, site: Site, key: tuple[object, ...], error: OnnxqError, context: Context
    ) -> None:
        """Stop, or leave the site in float; what was finished before is kept either way."""
        note("site failed", site=site.name, reason=str(error))
        if context.workers.on_failure == "leave":
            self._failed[key] = f"{self._solver.name} failed on it: {error}"
            return
        raise WorkerError(
            f"Site {site.name!r} could not be solved by {self._solver.name!r}: {error}. Run again "
            "with --on-failure leave to leave such sites in float, or leave this one out with "
            f"--set 'quantize_weights.exclude=[{site.name!r}]'."
        ) from error

    def failure(self, site: Site, fmt: Format) -> str | None:
        """Why a site has no codes and stays in float; None when it has."""
        return self._failed.get(_key(site, fmt))

    def _new_weight(
        self, site: Site, fmt: Format, again: bool, finished: FinishedSites
    ) -> NewWeight | None:
        """What the rest of the network runs on; ``again``: its weight has served another site."""
        if _key(site, fmt) in self._failed:
            return None
        solved = self._solved[_key(site, fmt)]
        if again:
            self._notes[site.name] = "its weight was solved on the data of another site it serves"
            solved = dataclasses.replace(solved, shift=None)
            finished.keep(site, solved)
        elif solved.shift is not None:
            self._shifts[site.name] = solved.shift
        return solved.new_weight(fmt)

    def _problem(
        self,
        site: Site,
        fmt: Format,
        statistics: tuple[Statistics, ...],
        how: Gathering,
        context: Context,
    ) -> SiteProblem:
        return SiteProblem(
            rows=to_rows(site, weight_tensor(weight_of(site)).numpy()),
            statistics=statistics,
            fmt=fmt,
            solver=self._solver.name,
            options=self._options,
            seed=self._seed,
            refit=how.refit,
            corrects_bias=how.corrects_bias and bias_reader(site) is not None,
            keep_columns=self._columns_to_keep(site, how),
        )

    def _columns_to_keep(self, site: Site, how: Gathering) -> int:
        """How many; a site that cannot have any says so in the report."""
        if not how.keep_columns:
            return 0
        reason = keeping_refusal(site, how.keep_columns)
        if reason is None:
            return how.keep_columns
        self._notes[site.name] = f"no columns kept: {reason}"
        return 0

    def kept(self, site: Site, fmt: Format) -> KeptColumns | None:
        """The columns of a site that stay in full precision; None without any."""
        solved = self._solved.get(_key(site, fmt))
        return None if solved is None else solved.kept

    def move_biases(self, sites: Sequence[Site]) -> None:
        """Take the mean of the error out of the biases, of sites whose weights were solved."""
        for site in sites:
            shift, reader = self._shifts.pop(site.name, None), bias_reader(site)
            if shift is None or reader is None or site.node.graph is None:
                continue
            moved = moved_bias(site, shift)
            value = add_weight(
                site.node.graph,
                f"{site.node.name}_corrected_bias",
                shape=moved.shape,
                dtype=ir.DataType.from_numpy(moved.dtype),
                compute=moved,
            )
            reader[0].replace_input_with(reader[1], value)


def _coupling(site: Site, fmt: Format) -> str | None:
    """Why the groups of a convolution cannot be solved one by one; None when they can."""
    if site.groups > 1 and isinstance(fmt, IntFormat) and isinstance(fmt.granularity, PerTensor):
        return "one scale for the whole weight couples the groups of a grouped convolution"
    return None


def _key(site: Site, fmt: Format) -> tuple[object, ...]:
    return (id(site.weight), site.in_axis, site.out_axis, str(fmt))
