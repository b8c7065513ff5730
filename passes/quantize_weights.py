"""Store the weights of linear sites in few bits; activations stay in float.

For a weight W (rows = output channels, columns = inputs) and a format with scales s and zero
points z, the stored codes are q = clip(round(W / s) + z) and the runtime computes with
Ŵ = (q − z) · s. Before → after, by how it is written::

    dequantize     MatMul(x, W)  →  MatMul(x, DequantizeLinear(q, s, z))     standard ONNX
    matmul_nbits   MatMul(x, W)  →  MatMulNBits(x, q, s, z)                  com.microsoft
    operator       MatMul(x, W)  →  onnxq.MatMul...(x, arrays)               onnxq
    embedding      Gather(W, i)  →  GatherBlockQuantized(q, i, s, z)         com.microsoft

Which codes are stored is up to the solver: the nearest ones, or those that change the output of
the site least on calibration data, found block by block (see `onnxq.solvers`).

ONNX Runtime fuses the first form into the second when it loads the model, so ``dequantize`` is
as fast there and any runtime can read it; ``matmul_nbits`` states the fused form, keeps
``accuracy_level`` with the model, and is what onnxruntime-genai's own builder writes.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from onnxq.calibration.segment_walk import Flow
from onnxq.calibration.token_weights import parse_token_weights
from onnxq.errors import FormatError, RecipeError, UnsupportedGraph
from onnxq.formats import Format, IntFormat, parse_format
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.stage import Stage
from onnxq.passes.base import Context, Pass, PassReport, Promise, SiteReport
from onnxq.passes.gathering import Gathering
from onnxq.passes.learned_rounding import find_solver
from onnxq.passes.weight_forms import LINEAR, minimum_opset, site_refusal, written_form
from onnxq.passes.weight_layout import weight_type
from onnxq.passes.weight_solving import WeightSolver
from onnxq.passes.weight_writing import WeightWriter
from onnxq.solvers.nearest import Search

Write = Literal["auto", "dequantize", "matmul_nbits", "operator"]

_FLOAT = "float"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Weight-only quantization of every linear site.

    Matches: MatMul, Gemm, Conv and ConvTranspose with a constant weight; Gather of a constant
    table when ``embedding_format`` is set. In subgraphs too.
    Writes: DequantizeLinear (blocked for groups), MatMulNBits or GatherBlockQuantized.
    Leaves: computed weights, weights already quantized, sites inside functions, and what
    ``exclude`` and ``overrides`` say; each with its reason.

    Attributes:
        format: the format of the weights, e.g. ``int8_channel``, ``int4_g128``, ``int2_g64_asym``.
        write: how they are written; ``auto`` takes MatMulNBits where it can hold the format and
            DequantizeLinear elsewhere; ``operator`` takes operators of onnxq (docs/custom_ops.md),
            as formats that are no integers always do, and DequantizeLinear for the integers of
            convolutions, which have none. ``dequantize`` fills up no row to whole
            groups, and a head tied to an embedding still shares the codes of the embedding.
        embedding_format: the format of embedding tables; ``float`` leaves them alone.
        overrides: format by site name pattern (first match wins); ``float`` leaves a site alone.
        exclude: name patterns of sites to leave in float.
        search: how scales are found: ``minmax``, ``mse`` (a grid search for the least squares),
            ``neuqi`` or ``hqq``; None takes the solver's default, which is ``minmax`` for nearest.
        accuracy_level: 4 lets MatMulNBits round activations to 8 bits per block; 0 does not.
        solver: how codes are chosen: ``nearest`` and ``easyquant`` need no data; ``gptq``,
            ``gptaq``, ``coordinate_descent``, ``decoupleq``, ``lnq`` and ``beam_search`` need
            calibration samples; ``adaround``, ``flexround``, ``lrq``, ``discquant`` and ``gsq``
            learn through whole blocks, with torch.
        solver_options: options of the solver, e.g. ``{ damping = 0.05 }``; `onnxq solvers` and
            docs/solvers.md list them.
        data_free: name patterns of sites that are rounded to nearest whatever the solver is, such
            as a head in 8 bits. Embedding tables always are.
        refit_scales: fit the scales to the codes once more, in closed form, after the solver.
        keep_columns: so many input columns of each solved MatMul and Gemm also get a correction in
            full precision, chosen with the codes: for activations with outliers.
        correct_bias: take the mean of the output error, on the calibration data, out of the bias
            of every solved site that has a constant one.
        flow: what the sites of a data-aware solver see as inputs: ``sequential``, those of the
            model as quantized so far; ``one_shot``, those of the float model; ``asymmetric``, both,
            which ``gptaq`` needs.
        cut: where the walk is cut: before the ``sites`` that share an input, between the
            ``blocks`` of the model, nowhere (``whole``), or at the values named.
        token_weights: how tokens count: ``auto``, once and once more by the attention they receive
            (alike where that cannot be seen); ``all`` alike; ``first:N`` only the first N of a
            sample; ``attention`` as RSQ does (arXiv:2503.01820); ``groups`` of tokens equally (MBQ,
            arXiv:2412.19509) or as ``given``, both in an array of each sample.
        samples: at most how many calibration samples a data-aware solver looks at, the first ones.
        seed: for solvers that draw random numbers.
    """

    format: str = "int4_g128"
    write: Write = "auto"
    embedding_format: str = _FLOAT
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    search: Search | None = None
    accuracy_level: Literal[0, 1, 4] = 4
    solver: str = "nearest"
    solver_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data_free: tuple[str, ...] = ()
    refit_scales: bool = False
    keep_columns: int = 0
    correct_bias: bool = False
    flow: Flow = "sequential"
    cut: Literal["sites", "blocks", "whole"] | tuple[str, ...] = "sites"
    token_weights: str = "auto"
    samples: int = 128
    seed: int = 0

    promise: ClassVar[Promise] = Promise.CLOSE
    gives_stage: ClassVar[Stage | None] = Stage.QUANTIZED

    def __post_init__(self) -> None:
        """Refuse what no model could be run with, before any work."""
        needs = find_solver(self.solver).needs
        self._options()
        parse_token_weights(self.token_weights)
        if "drift" in needs and self.flow != "asymmetric":
            raise RecipeError(
                f"Solver {self.solver!r} compares with the float model and needs "
                f"flow=asymmetric, not {self.flow!r}."
            )
        if self.keep_columns < 0 or (self.keep_columns and "drift" in needs):
            raise RecipeError(
                f"keep_columns={self.keep_columns} with solver {self.solver!r}: give 0 or more, "
                "and a solver that needs no drift, such as gptq or coordinate_descent."
            )
        for key in ("refit_scales", "correct_bias", "keep_columns"):
            if getattr(self, key) and "block" in needs:
                raise RecipeError(
                    f"{key} goes with solvers that look at one site at a time, and "
                    f"{self.solver!r} learns whole blocks: leave {key} out."
                )
            if getattr(self, key) and not needs:
                raise RecipeError(
                    f"{key} looks at calibration data, and solver {self.solver!r} uses none: "
                    f"choose a solver such as gptq, or leave {key} out."
                )

    @property
    def needs_samples(self) -> bool:
        """Whether the solver looks at data."""
        return bool(find_solver(self.solver).needs)

    @property
    def extra_arrays(self) -> tuple[str, ...]:
        """The array of token weights or groups, where the samples give them."""
        name = parse_token_weights(self.token_weights).array
        return () if name is None else (name,)

    def requires(self, model: ir.Model) -> None:
        """Raise unless there is something to quantize and the opset can express it."""
        found = find_sites(model)
        sites = [site for site in found if site.kind in (*LINEAR, "Gather")]
        done = [site for site in found if site.already]
        if done and not any(site.already is None and site.refusal is None for site in sites):
            raise UnsupportedGraph(
                f"The model is already quantized: {done[0].name!r} is {done[0].already}, and no "
                "float weight is left. Quantize the float model it was made from."
            )
        able = [(s, self.format_of(s)) for s in sites if s.refusal is None and s.already is None]
        wanted = max((minimum_opset(s, fmt, self.write) for s, fmt in able if fmt), default=0)
        opset = model.opset_imports.get("", 0)
        if opset < wanted:
            raise UnsupportedGraph(
                f"The formats asked for need opset {wanted} (block-wise DequantizeLinear), and "
                f"the model has {opset}: put convert_opset with minimum={wanted} earlier in the "
                "recipe, or set write=matmul_nbits."
            )

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Quantize site by site; the largest weight is all that is in memory at once."""
        found = find_sites(model)
        codes = self._solve(model, found, context)
        writer = WeightWriter(model, context.scratch, codes, self.accuracy_level)
        sites = [s for s in found if s.kind != "Gather" or s.already or s.refusal]
        tables = [s for s in found if s.kind == "Gather" and s not in sites]
        tied = {(id(table.weight), self.format_of(table)) for table in tables}
        reports = []
        for number, site in enumerate((*sites, *tables)):
            context.progress("quantize weights", number, len(sites) + len(tables))
            try:
                reports.append(self._visit(site, writer, codes, tied))
            except FormatError as error:
                weight = site.weight.name if site.weight is not None else None
                raise FormatError(f"Weight {weight!r} of {site.name!r}: {error}") from error
        writer.remove_unused()
        modified = any(report.reason is None for report in reports)
        return PassReport(modified=modified, sites=tuple(reports), notes=codes.notes)

    def _solve(self, model: ir.Model, found: Sequence[Site], context: Context) -> WeightSolver:
        """Choose codes: at once where data are needed, else when a site is written."""
        codes = WeightSolver(
            find_solver(self.solver),
            self._options(),
            nearest_options={} if self.search is None else {"search": self.search},
            seed=self.seed,
        )
        formats, tables, rest = self.division(found)
        codes.round_without_data(tables)
        needs = find_solver(self.solver).needs
        if needs:
            weights = parse_token_weights(self.token_weights)
            how = Gathering(
                flow=self.flow,
                cut=self.cut,
                token_weights=weights,
                samples=self.samples,
                refit=self.refit_scales,
                corrects_bias=self.correct_bias,
                keep_columns=self.keep_columns,
            )
            gather = codes.learn if "block" in needs else codes.gather
            gather(model, formats, rest, context, how)
            codes.move_biases(rest)
        return codes

    def division(self, found: Sequence[Site]) -> tuple[dict[str, Format], list[Site], list[Site]]:
        """Formats by name of the site; sites rounded without data, and those given to the solver.

        A solver that needs no data gets all of the latter when they are written.
        """
        formats = {site.name: fmt for site in found if (fmt := self.format_of(site))}
        able = [
            site
            for site in found
            if site.name in formats and site_refusal(site, formats[site.name], self.write) is None
        ]
        tables = [site for site in able if site.kind == "Gather" or self._is_data_free(site)]
        return formats, tables, [site for site in able if site not in tables]

    def _options(self) -> dict[str, Any]:
        """The options of the solver, its ``search`` among them, checked."""
        chosen = find_solver(self.solver)
        given = dict(self.solver_options)
        if self.search is not None and "search" in chosen.options:
            given.setdefault("search", self.search)
        return chosen.check(given)

    def _is_data_free(self, site: Site) -> bool:
        return any(fnmatch.fnmatchcase(site.name, pattern) for pattern in self.data_free)

    def _visit(
        self,
        site: Site,
        writer: WeightWriter,
        codes: WeightSolver,
        tied: set[tuple[int, Format | None]],
    ) -> SiteReport:
        """Write one site; one ``tied`` to an embedding takes the form that shares its codes."""
        fmt = self.format_of(site)
        reason = site_refusal(site, fmt, self.write)
        if fmt is not None and reason is None:
            reason = codes.failure(site, fmt)
        if reason is not None or fmt is None:
            return SiteReport(site=site.name, reason=reason)
        is_tied = (id(site.weight), fmt) in tied
        form = written_form(site, fmt, self.write, is_tied=is_tied)
        if form != "gather":
            writer.keep_columns(site, fmt)
        if form == "operator" or not isinstance(fmt, IntFormat):
            return writer.operator(site, fmt)
        write = {
            "gather": writer.gather_block_quantized,
            "matmul_nbits": writer.matmul_nbits,
            "dequantize": writer.dequantize,
        }[form]
        return write(site, fmt)

    def format_of(self, site: Site) -> Format | None:
        """The format asked for; None for float."""
        if any(fnmatch.fnmatchcase(site.name, pattern) for pattern in self.exclude):
            return None
        base = self.embedding_format if site.kind == "Gather" else self.format
        for pattern, text in self.overrides.items():
            if fnmatch.fnmatchcase(site.name, pattern):
                base = text
                break
        if base == _FLOAT:
            return None
        fmt = parse_format(base)
        half = site.weight is not None and weight_type(site) == ir.DataType.FLOAT16
        if not half or not isinstance(fmt, IntFormat) or fmt.two_level:
            return fmt
        return dataclasses.replace(fmt, scale_dtype="float16")  # codes are chosen with what is kept
