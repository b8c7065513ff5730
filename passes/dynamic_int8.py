"""Dynamic int8: weights stored as int8, activations quantized as they come. No data needed.

For y = x·W with W = codes·s_c (one scale per output channel) and x ≈ s_x·(q_x − z_x)::

    MatMul(x, W)  →  q_x, s_x, z_x = DynamicQuantizeLinear(x)
                     y = Cast(MatMulInteger(q_x, codes, z_x)) · (s_x · s_c)

ONNX Runtime runs the right side as one kernel (DynamicQuantizeMatMul, or MatMulIntegerToFloat when
several sites share x). One range for the whole activation tensor is the weak point: a single
outlier takes resolution from every token, and small language models lose most of their quality.

With a scale s_t for every row (``granularity = "token"``; ZeroQuant, Yao et al., arXiv:2206.01861,
section 4.1), which leaves the integer product as it is because each of its rows has one scale::

    MatMul(x, W)  →  q_x, s_t = rows of x in ±127 steps
                     y = Cast(MatMulInteger(q_x, codes, 128)) · s_c · s_t

An LSTM becomes com.microsoft's DynamicQuantizeLSTM, which does the same inside.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxq.errors import RecipeError
from onnxq.graph import Site, find_sites
from onnxq.graph.stage import Stage
from onnxq.passes.base import Context, Pass, PassReport, Promise, SiteReport
from onnxq.passes.dynamic_writing import DynamicWriter, dynamic_refusal, lstm_refusal
from onnxq.passes.int8_weights import Int8Weights
from onnxq.passes.preconditions import need_float_weight, need_opset
from onnxq.passes.site_patterns import is_meant

__all__ = ["DynamicInt8"]

_MINIMUM_OPSET = 11


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicInt8(Pass):
    """Integer matrix products with activations quantized at run time.

    Matches: MatMul and Gemm with a constant float32 weight, in bodies and functions too; LSTM and
    Conv when asked.
    Writes: DynamicQuantizeLinear, or a scale for each row (one for all sites that read a value),
    MatMulInteger, DynamicQuantizeLSTM, ConvInteger.
    Leaves: computed weights, weights on the left, other types, what is excluded.

    Attributes:
        granularity: ``tensor``, one range for all of an activation, which is fastest; ``token``, a
            symmetric one for each row (of a convolution, for each sample), which keeps the quality
            of language models at about four fifths of the speed.
        reduce_range: 7-bit weights, for x86 CPUs without VNNI.
        convolutions: also write ConvInteger. ONNX Runtime's is several times slower than its
            float Conv, so this saves size and not time.
        recurrent: also write DynamicQuantizeLSTM.
        rest: take what another pass, such as `insert_qdq`, has left in float; none left is right
            too. Else a model that is quantized already is refused.
        exclude: name patterns, or operator types, of sites to leave in float.
    """

    granularity: Literal["tensor", "token"] = "tensor"
    reduce_range: bool = False
    convolutions: bool = False
    recurrent: bool = True
    rest: bool = False
    exclude: tuple[str, ...] = ()

    promise: ClassVar[Promise] = Promise.CLOSE
    gives_stage: ClassVar[Stage | None] = Stage.QUANTIZED

    def __post_init__(self) -> None:
        """Refuse a granularity that is none."""
        if self.granularity not in ("tensor", "token"):
            raise RecipeError(
                f"There is no granularity {self.granularity!r}: say 'tensor' (one range for all of "
                "an activation) or 'token' (one for each row)."
            )

    def requires(self, model: ir.Model) -> None:
        """Refuse a model that is too old, or quantized already unless its ``rest`` is meant.

        Raises:
            UnsupportedGraph: says what was found and what to do first.
        """
        if not self.rest:
            need_float_weight(model, "Quantize the float model it was made from.")
        need_opset(model, _MINIMUM_OPSET, "DynamicQuantizeLinear")

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Rewrite site by site."""
        bits = 7 if self.reduce_range else 8
        weights = Int8Weights(context.scratch, bits=bits)
        writer = DynamicWriter(model, weights, rows=self.granularity == "token")
        reports: dict[str, SiteReport] = {}
        sites = find_sites(model)
        for number, site in enumerate(sites):
            context.progress("dynamic int8", number, len(sites))
            if site.node.graph is None:
                continue  # the second weight of an LSTM went with the first
            reason = self._refusal(site)
            if reason is not None:
                reports[site.name] = SiteReport(site=site.name, reason=reason)
                continue
            weight = writer.write(site)
            reports[site.name] = SiteReport(
                site=site.name,
                format="int8_channel",
                bits=weight.bits,
                error=weight.error,
                nbytes=weight.nbytes,
            )
        writer.finish()
        return PassReport(
            modified=any(report.reason is None for report in reports.values()),
            sites=tuple(reports.values()),
        )

    def _refusal(self, site: Site) -> str | None:
        if site.already is not None:
            return f"it is already quantized ({site.already})"
        if site.is_embedding:
            return "it is a table to look up, not a weight to multiply by"
        if is_meant(site, self.exclude):
            return "the recipe leaves it in float"
        if site.kind == "LSTM":
            return lstm_refusal(site) if self.recurrent else "recurrent layers are not asked for"
        if site.kind == "Conv" and not self.convolutions:
            return "ONNX Runtime's ConvInteger is slower than a float Conv; convolutions=true asks"
        if site.refusal is not None:
            return site.refusal
        return dynamic_refusal(site)
