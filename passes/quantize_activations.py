"""Round the activations that linear sites read to few bits: the A of W8A8, W4A8 and W4A4.

For a site y = x·W the activation becomes x̂ = s·round(x / s), rounded once for all the sites that
read it (queries, keys and values; gate and up)::

    token     MatMul(x, W)  →  MatMul(DynamicFakeQuantize(x), W)       a scale s for every row of x
    tensor    MatMul(x, W)  →  MatMul(DequantizeLinear(QuantizeLinear(x, s, z), s, z), W)

The product itself stays in float: no runtime has an integer kernel with a scale for every token,
or with codes of 4 bits, so this *simulates* what such a kernel gives, exactly, and the report of
every site says so. For int8 there are integer kernels, which other passes write: `dynamic_int8`
(granularity ``token`` or ``tensor``) and `insert_qdq`; and MatMulNBits with ``accuracy_level`` 4
rounds its activations to 8 bits by itself, block by block, so 4-bit weights with 8-bit activations
need no pass at all.

It comes after the transforms, which move outliers before anything is rounded, and before
`quantize_weights`, whose solvers then see the activations that the site will be given.

A scale for every token: ZeroQuant (Yao et al., arXiv:2206.01861, section 4.1); share of the range
that is kept: QuaRot (Ashkboos et al., arXiv:2404.00456, section 5, 0.9 for 4 bits); calibrated
ranges: Krishnamoorthi (arXiv:1806.08342).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxq.calibration import ObserverSpec, Range, collect_ranges
from onnxq.calibration.collect import Ranges
from onnxq.calibration.observers import Method
from onnxq.calibration.readings import ConvReading, LinearReading, reading_of
from onnxq.errors import RecipeError
from onnxq.graph.activation_clip import clip_of
from onnxq.graph.opset import infer_shapes
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.stage import Stage
from onnxq.graph.weights import is_weight
from onnxq.passes.activation_points import ActivationPoints, Point, grid_of
from onnxq.passes.base import Context, Pass, PassReport, Promise, Samples, SiteReport
from onnxq.passes.fake_quantization import FUNCTION_OPSET, rounded_by
from onnxq.passes.preconditions import need_float_weight, need_opset
from onnxq.passes.site_patterns import is_meant
from onnxq.passes.token_noise import loud_reasons, token_noise

__all__ = ["QuantizeActivations"]

_STATIC_OPSET = 21
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_SIMULATED = "simulated: the activation is rounded and the product is computed in float"
_STATIC = "simulated unless the runtime replaces the pair around the site by an integer kernel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeActivations(Pass):
    """Round what linear sites read, per token as the model runs or per tensor as calibrated.

    Matches: MatMul, Gemm, Conv and ConvTranspose with a constant float weight, in bodies too.
    Writes: DynamicFakeQuantize, a function in standard operators, or QuantizeLinear and
    DequantizeLinear; one per activation and format.
    Leaves: sites whose weight or activation is quantized already, embeddings, sites inside
    functions, what is excluded; each with its reason.

    Attributes:
        bits: width of a code, 2 to 8.
        granularity: ``token``, a scale for each row of the product (for a convolution, which sums
            over positions, for each sample); ``tensor``, one scale found on calibration samples.
        symmetric: without a zero point.
        clip: share of the range of a token that is kept, for ``token``: values beyond are cut
            off, the others get finer steps. Multiplies what a learned transform has recorded.
        observer: how the range is chosen, for ``tensor``.
        percentile: percentage of the values inside the range, for observer ``percentile``.
        min_token_db: for ``tensor``: signal-to-noise ratio, mean over tokens, that a MatMul or Gemm
            is to keep when its input is rounded with its one scale; inputs of those that keep less
            get a scale for each token. 0 does not measure.
        overrides: bits by name pattern, or operator type, of sites; the first match wins.
        exclude: name patterns, or operator types, of sites to leave alone.
    """

    bits: int = 8
    granularity: Literal["token", "tensor"] = "token"
    symmetric: bool = True
    clip: float = 1.0
    observer: Method = "minmax"
    percentile: float = 99.99
    min_token_db: float = 0.0
    overrides: Mapping[str, int] = dataclasses.field(default_factory=dict)
    exclude: tuple[str, ...] = ()

    promise: ClassVar[Promise] = Promise.CLOSE
    gives_stage: ClassVar[Stage | None] = Stage.QUANTIZED

    def __post_init__(self) -> None:
        """Refuse what no model could be run with, before any work."""
        for bits in (self.bits, *self.overrides.values()):
            if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
                raise RecipeError(
                    f"Activations of {bits!r} bits are not known: bits are whole numbers from 2 to "
                    "8; to leave sites in float, name them in exclude."
                )
        if self.granularity not in ("token", "tensor"):
            raise RecipeError(
                f"There is no granularity {self.granularity!r}: say 'token' (a scale for each row, "
                "found as the model runs) or 'tensor' (one scale, calibrated)."
            )
        if not 0.0 < self.clip <= 1.0:
            raise RecipeError(
                f"clip is {self.clip}: it is the share of a token's range that is kept, in (0, 1]."
            )
        if self.granularity == "tensor" and self.clip != 1.0:
            raise RecipeError(
                "clip cuts the range of each token; a calibrated range is cut by its observer: "
                "set observer=percentile or observer=mse."
            )
        if self.granularity == "token" and self.min_token_db > 0:
            raise RecipeError(
                "min_token_db looks for tokens that one scale for all would lose, and with "
                "granularity=token each has its own: leave it out, or set granularity=tensor."
            )

    @property
    def needs_samples(self) -> bool:
        """Whether ranges are calibrated."""
        return self.granularity == "tensor"

    def requires(self, model: ir.Model) -> None:
        """Raise unless there is a float site left and the opset can express the rounding.

        Raises:
            UnsupportedGraph: says what was found and what to do first.
        """
        need_float_weight(model, "Put quantize_activations before the pass that quantizes weights.")
        wanted = FUNCTION_OPSET if self.granularity == "token" else _STATIC_OPSET
        need_opset(model, wanted, "Rounding activations as asked for")

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Find what every site asks for, measure where that is needed, then write.

        Raises:
            CalibrationError: ranges are asked for, and there are no samples or they do not fit.
        """
        infer_shapes(model)
        sites = find_sites(model)
        inner = {node for function in model.functions.values() for node in function.all_nodes()}
        outcomes = {
            site: "it is inside a function: inline functions first"
            if site.node in inner
            else self._point(site)
            for site in sites
        }
        loud: dict[str, str] = {}
        if self.needs_samples:
            outcomes, loud = self._measured(model, outcomes, context)
        points = ActivationPoints(model)
        reports = []
        for number, (site, outcome) in enumerate(outcomes.items()):
            context.progress("quantize activations", number, len(sites))
            if isinstance(outcome, str):
                reports.append(SiteReport(site=site.name, reason=outcome))
                continue
            points.write(site.node, outcome)
            reports.append(
                SiteReport(
                    site=site.name,
                    format=f"a{outcome.bits}_{'tensor' if outcome.range else 'token'}",
                    note=_note(outcome, loud.get(site.name)),
                )
            )
        modified = any(report.reason is None for report in reports)
        return PassReport(modified=modified, sites=tuple(reports))

    def _point(self, site: Site) -> Point | str:
        """The rounding that a site asks for, or why it is left alone."""
        if site.already is not None:
            return (
                f"it is already quantized ({site.already}): activations are rounded before "
                "weights, whose rounding looks at them"
            )
        if site.is_embedding:
            return "it looks up rows of its weight and multiplies no activation"
        if is_meant(site, self.exclude):
            return "the recipe leaves it in float"
        if site.refusal is not None:
            return site.refusal
        reading = reading_of(site)
        if isinstance(reading, str):
            return reading
        value = site.input
        if value is None or is_weight(value):
            return "what it multiplies is constant: fold constants first"
        if rounded_by(site) is not None:
            return "its activation is quantized already"
        if value.dtype is not None and value.dtype not in _FLOATS:
            return f"its activation is {value.dtype.name}, and only float types up to float are"
        if self.granularity == "tensor" and site.path:
            return "it is inside a body, where no activation ranges are observed"
        axes = _row_axes(value, reading)
        return (
            axes
            if isinstance(axes, str)
            else Point(
                value=value,
                axes=axes,
                bits=self._bits_of(site),
                symmetric=self.symmetric,
                clip=self.clip * clip_of(value),
            )
        )

    def _bits_of(self, site: Site) -> int:
        for pattern, bits in self.overrides.items():
            if is_meant(site, (pattern,)):
                return bits
        return self.bits

    def _measured(
        self, model: ir.Model, outcomes: Mapping[Site, Point | str], context: Context
    ) -> tuple[dict[Site, Point | str], dict[str, str]]:
        """The points with their calibrated ranges; those without one become reasons.

        Points of sites that would lose too much keep no range, and why is told by their name.
        """
        samples = context.needed_samples(
            "quantize_activations with granularity=tensor needs samples to measure ranges on, "
            "and the recipe was run without data: give some (a folder of .npz files, texts, "
            "images or audio), or set granularity=token."
        )
        points = [outcome for outcome in outcomes.values() if isinstance(outcome, Point)]
        found: dict[int, Ranges] = {}
        for bits in sorted({point.bits for point in points}):
            names = dict.fromkeys(p.value.name or "" for p in points if p.bits == bits)
            found[bits] = collect_ranges(
                model,
                list(names),
                samples,
                observer=ObserverSpec(
                    method=self.observer,
                    percentile=self.percentile,
                    bits=bits,
                    symmetric=self.symmetric,
                ),
                progress=context.progress,
            )
        ranged = {
            site: outcome if isinstance(outcome, str) else _ranged(outcome, found[outcome.bits])
            for site, outcome in outcomes.items()
        }
        loud = self._loud(model, ranged, samples, context)
        return {s: outcomes[s] if s.name in loud else ranged[s] for s in outcomes}, loud

    def _loud(
        self,
        model: ir.Model,
        ranged: Mapping[Site, Point | str],
        samples: Samples,
        context: Context,
    ) -> dict[str, str]:
        """Why sites get a scale for each token although one for all was asked for, by name."""
        if self.min_token_db <= 0:
            return {}
        context.progress("measure tokens", 0, 0)
        grids = {
            site: grid_of(point, point.range)
            for site, point in ranged.items()
            if isinstance(point, Point) and point.range is not None
        }
        return loud_reasons(token_noise(model, grids, samples), self.min_token_db)


def _note(point: Point, loud: str | None) -> str:
    """What a reader should know of a rounded activation."""
    if point.range is not None:
        return _STATIC
    return _SIMULATED if loud is None else f"{loud}: so each token has a scale; {_SIMULATED}"


def _row_axes(value: ir.Value, reading: LinearReading | ConvReading) -> tuple[int, ...] | str:
    """The axes of the activation along which one scale may be shared, or why none is known."""
    if isinstance(reading, ConvReading):
        return tuple(range(1, 2 + len(reading.kernel)))
    if reading.axis == -1 or (value.shape is not None and len(value.shape) == 1):
        return (-1,)
    if value.shape is None:
        return "the rank of its activation is not known, and with it which axis is summed over"
    return (reading.axis,)


def _ranged(point: Point, ranges: Ranges) -> Point | str:
    """The point with its range, or why it has none."""
    name = point.value.name or ""
    found = ranges.get(name)
    if not isinstance(found, Range):
        return f"its activation has no range: {ranges.reasons.get(name, 'it was not observed')}"
    return dataclasses.replace(point, range=found, axes=(), clip=1.0)
