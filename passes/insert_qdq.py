"""Static int8: quantized weights and activations, written as QuantizeLinear/DequantizeLinear.

For a linear site y = W·x + b with the observed range of x in ``value.meta``::

    Conv(x, W, b) → Conv(DQ(Q(x)), DQ(codes, s_c), DQ(round(b / (s_x·s_c)))) → Q → DQ

The graph stays a float graph with rounding in it, which any ONNX runtime can run; runtimes that
have integer kernels replace each pattern by one (QLinearConv, QGemm, MatMulIntegerToFloat, ...).
Which patterns they recognise differs, and is a table: `onnxq.passes.qdq_targets`. Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(2018), section 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxq.calibration import check_ranges
from onnxq.graph import Site, find_sites
from onnxq.graph.scratch import Scratch
from onnxq.graph.stage import Stage, clone_model
from onnxq.passes.base import Context, Pass, PassReport, Progress, Promise, SiteReport
from onnxq.passes.base import no_progress as silent
from onnxq.passes.bias_correction import bias_corrections
from onnxq.passes.int8_weights import Int8Weights
from onnxq.passes.preconditions import need_float_weight, need_opset
from onnxq.passes.qdq_outputs import Deviation
from onnxq.passes.qdq_placement import Placement, observed_ranges
from onnxq.passes.qdq_targets import ActivationType, Target, target_of
from onnxq.passes.qdq_trial import Trials, least_left, noise_reasons
from onnxq.passes.qdq_writing import QdqWriter
from onnxq.passes.site_noise import measure_sites, noisiest
from onnxq.passes.site_operands import bias_refusal, weight_refusal
from onnxq.passes.site_patterns import is_meant
from onnxq.passes.token_noise import loud_reasons, token_noise

__all__ = ["InsertQdq"]

_MINIMUM_OPSET = 13


@dataclasses.dataclass(frozen=True, kw_only=True)
class InsertQdq(Pass):
    """Quantize weights and activations of linear sites to int8, with ranges observed before.

    Matches: MatMul, Gemm, Conv and, by target, ConvTranspose of the main graph with a constant
    float32 weight and an observed input.
    Writes: int8 weights and int32 biases behind DequantizeLinear, QuantizeLinear and
    DequantizeLinear on activations, and on what lies between two sites and can run in int8.
    Leaves: computed weights, bodies and functions (nothing is observed there), sites without a
    range, what is excluded, what the target has no int8 kernel for; each with its reason.

    Attributes:
        target: the runtime to place for: ``onnxruntime-cpu`` or ``tensorrt``.
        activation: type of activation codes; None takes that of the target.
        symmetric_activations: zero point 0 for activations; None takes that of the target.
        weight_format: ``int8_channel``, or ``int8_tensor`` for one scale per weight.
        reduce_range: 7-bit weights, for x86 CPUs without VNNI, whose kernels add pairs of
            products in 16 bits.
        power_of_two: scales are powers of two, for fixed-point devices, which shift instead of
            multiplying: steps are up to twice as coarse.
        rounding: ``sums`` lets the rounding errors of each kernel and channel cancel, which
            matters behind ReLU; ``nearest`` rounds every weight by itself.
        correct_bias: take the mean of the rounding error, measured on calibration samples, out of
            the biases.
        quantize_ops: operator types to quantize; None takes all the target has kernels for.
        exclude: name patterns, or operator types, of sites to leave in float.
        activation_matmuls: also quantize products of two activations (attention scores).
        min_output_db: signal-to-noise ratio the outputs are to keep, before a softmax when they
            come out of one; the sites that would put most noise on them are left in float until
            the rest adds up to less. Measured on calibration samples; 0 does not measure.
        check_together: check that ratio, and ``changed_decisions``, on the model with all the
            chosen sites quantized and all calibration samples (16 when nothing is decided), and
            leave more in float until both are kept: log2(sites) trials when the first fails.
        changed_decisions: fraction of the decisions, the greatest of the classes of a softmax at
            an output, that may change on calibration samples.
        noise_samples: calibration samples to measure noise and means on.
        min_token_db: signal-to-noise ratio, mean over tokens, that a MatMul or Gemm is to keep when
            its input is rounded with its one step; those that keep less are left in float, for
            `dynamic_int8` (rest=true, granularity=token) behind this pass to give each token a
            step. 0 does not measure.
    """

    target: str = "onnxruntime-cpu"
    activation: ActivationType | None = None
    symmetric_activations: bool | None = None
    weight_format: Literal["int8_channel", "int8_tensor"] = "int8_channel"
    reduce_range: bool = False
    power_of_two: bool = False
    rounding: Literal["sums", "nearest"] = "sums"
    correct_bias: bool = True
    quantize_ops: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    activation_matmuls: bool = False
    min_output_db: float = 30.0
    check_together: bool = True
    changed_decisions: float = 0.0
    noise_samples: int = 4
    min_token_db: float = 0.0

    promise: ClassVar[Promise] = Promise.CLOSE
    needs_stage: ClassVar[Stage] = Stage.CALIBRATED
    gives_stage: ClassVar[Stage | None] = Stage.QUANTIZED

    def requires(self, model: ir.Model) -> None:
        """Refuse a model that is quantized already, too old, or was never calibrated.

        Raises:
            UnsupportedGraph: says what was found and what to run first.
            CalibrationError: there are no ranges, or the graph was edited after they were taken.
            RecipeError: there are no rules for the target.
        """
        target_of(self.target)
        need_float_weight(model, "Quantize the float model it was made from.")
        need_opset(model, _MINIMUM_OPSET, "A scale for each channel")
        check_ranges(model)

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Plan every point first, then write weights, biases and the points."""
        target = target_of(self.target)
        placement = self._placement(model, target)
        weights = self._weights(context.scratch)
        shifts: dict[str, np.ndarray[Any, Any]] = {}
        writer = QdqWriter(model, weights, integer_bias=target.integer_bias, corrections=shifts)
        sites = find_sites(model)
        reports: dict[str, SiteReport] = {}
        accepted: list[Site] = []
        products: list[Site] = []
        for site in sites:
            if self._is_product(site, placement):
                products.append(site)
                reports[site.name] = SiteReport(site=site.name, format=self._activation(target))
                continue
            reason = self._refusal(site, target, placement)
            reports[site.name] = SiteReport(site=site.name, reason=reason)
            if reason is None:
                accepted.append(site)
        loud = self._loud(model, accepted, placement, context)
        accepted = [site for site in accepted if site.name not in loud]
        moved = any(site.bias_node for site in accepted if site.kind.startswith("Conv"))
        accepted = [writer.absorb_conv_bias(site) for site in accepted]
        if self.correct_bias and context.samples is not None and accepted:
            count = self.noise_samples
            shifts |= bias_corrections(model, accepted, weights, context.samples, count)
        measured = self._noisy(model, accepted, products, placement, weights, shifts, context)
        for name, reason in (loud | measured).items():
            reports[name] = SiteReport(site=name, reason=reason)
        accepted = [site for site in accepted if reports[site.name].reason is None]
        reports |= self._insert(accepted, products, writer, placement, context.progress)
        return PassReport(
            modified=bool(accepted or products or moved), sites=tuple(reports.values())
        )

    def _insert(
        self,
        sites: Sequence[Site],
        products: Sequence[Site],
        writer: QdqWriter,
        placement: Placement,
        progress: Progress,
    ) -> dict[str, SiteReport]:
        """Write weights, biases and points of what was accepted."""
        for site in sites:
            placement.add_site(site)
        for site in products:
            placement.add_input(site.node, 0)
            placement.add_input(site.node, 1)
        placement.spread(sites)
        reports = {}
        with writer.naming():
            for number, site in enumerate(sites):
                progress("insert QDQ", number, len(sites))
                reports[site.name] = self._write(site, writer, placement)
            writer.write_points(placement, {site.node for site in sites}, target_of(self.target))
        return reports

    def _loud(
        self, model: ir.Model, sites: Sequence[Site], placement: Placement, context: Context
    ) -> dict[str, str]:
        """The sites for whose tokens one step is too little, each with the reason."""
        if context.samples is None or self.min_token_db <= 0:
            return {}
        context.progress("measure tokens", 0, 0)
        grids = {
            site: placement.parameters(site.input).grid for site in sites if site.input is not None
        }
        return loud_reasons(token_noise(model, grids, context.samples), self.min_token_db)

    def _noisy(
        self,
        model: ir.Model,
        sites: list[Site],
        products: list[Site],
        placement: Placement,
        weights: Int8Weights,
        shifts: Mapping[str, np.ndarray[Any, Any]],
        context: Context,
    ) -> dict[str, str]:
        """The sites that int8 would make too noisy, each with the reason."""
        if context.samples is None or self.min_output_db <= 0 or not sites:
            return {}
        count, progress = self.noise_samples, context.progress
        noise = measure_sites(
            model, sites, placement, weights, shifts, context.samples, count, progress
        )
        allowed = 10 ** (-self.min_output_db / 10)
        ranked = sorted(noise, key=lambda name: -noise[name])
        alone = left = len(noisiest(noise, allowed))
        found: list[Deviation] = []
        if self.check_together:
            trials = Trials(model, context.samples)

            def keeps(floats: Sequence[str]) -> bool:
                progress("try sites together", 0, 0)
                copy = clone_model(model)
                self._try(copy, sites, products, placement.on(copy), weights, shifts, floats)
                found.append(trials.deviation(copy))
                return found[-1].keeps(allowed, self.changed_decisions)

            left = least_left(ranked, alone, keeps)
        return noise_reasons(noise, ranked, alone, left, (*found, None)[0], self.min_output_db)

    def _try(
        self,
        copy: ir.Model,
        sites: list[Site],
        products: list[Site],
        placement: Placement,
        weights: Int8Weights,
        shifts: Mapping[str, np.ndarray[Any, Any]],
        floats: Sequence[str],
    ) -> None:
        """Quantize all sites but those named in ``floats`` in a copy of their model."""
        found = {site.name: site for site in find_sites(copy)}
        integer_bias = target_of(self.target).integer_bias
        writer = QdqWriter(copy, weights.fresh(), integer_bias=integer_bias, corrections=shifts)
        chosen = [found[site.name] for site in sites if site.name not in floats]
        others = [found[site.name] for site in products]
        self._insert(chosen, others, writer, placement, silent)

    def _weights(self, scratch: Scratch) -> Int8Weights:
        return Int8Weights(
            scratch,
            bits=7 if self.reduce_range else 8,
            per_channel=self.weight_format == "int8_channel",
            keep_sums=self.rounding == "sums",
            power_of_two=self.power_of_two,
        )

    def _placement(self, model: ir.Model, target: Target) -> Placement:
        symmetric = self.symmetric_activations
        return Placement(
            model,
            target,
            ranges=observed_ranges(model),
            dtype=self._activation(target),
            symmetric=target.symmetric if symmetric is None else symmetric,
            power_of_two=self.power_of_two,
        )

    def _activation(self, target: Target) -> ActivationType:
        return self.activation or target.activation

    def _write(self, site: Site, writer: QdqWriter, placement: Placement) -> SiteReport:
        weight = writer.write_site(site, placement.input_scale(site))
        return SiteReport(
            site=site.name,
            format=self.weight_format,
            bits=weight.bits,
            error=weight.error,
            nbytes=weight.nbytes,
        )

    def _is_product(self, site: Site, placement: Placement) -> bool:
        """Whether the site multiplies two activations and was asked to be quantized."""
        if not self.activation_matmuls or site.kind != "MatMul" or site.weight is not None:
            return False
        if site.path or is_meant(site, self.exclude):
            return False
        return all(v is not None and placement.range_of(v) is not None for v in site.node.inputs)

    def _refusal(self, site: Site, target: Target, placement: Placement) -> str | None:
        if site.already is not None:
            return f"it is already quantized ({site.already})"
        if site.is_embedding:
            return "it is a table to look up, not a weight to multiply by"
        if is_meant(site, self.exclude):
            return "the recipe leaves it in float"
        if site.kind in target.refusals:
            return target.refusals[site.kind]
        if site.refusal is not None:
            return site.refusal
        wanted = target.kinds if self.quantize_ops is None else set(self.quantize_ops)
        if site.kind not in target.kinds or site.kind not in wanted:
            return f"{site.kind} is not among the operators to quantize for {target.name}"
        if site.path:
            return "it is inside a body or function, where no activation ranges are observed"
        reason = weight_refusal(site)
        if reason is None and target.integer_bias:
            reason = bias_refusal(site)
        return reason or placement.refusal(site)
