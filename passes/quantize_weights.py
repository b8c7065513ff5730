"""Store the weights of linear sites in few bits; activations stay in float.

For a weight W (rows = output channels, columns = inputs) and a format with scales s and zero
points z, the stored codes are q = clip(round(W / s) + z) and the runtime computes with
Ŵ = (q − z) · s. Before → after, by how it is written::

    dequantize     MatMul(x, W)  →  MatMul(x, DequantizeLinear(q, s, z))     standard ONNX
    matmul_nbits   MatMul(x, W)  →  MatMulNBits(x, q, s, z)                  com.microsoft
    embedding      Gather(W, i)  →  GatherBlockQuantized(q, i, s, z)         com.microsoft

ONNX Runtime fuses the first form into the second when it loads the model, so ``dequantize`` is
as fast there and any runtime can read it; ``matmul_nbits`` states the fused form, keeps
``accuracy_level`` with the model, and is what onnxruntime-genai's own builder writes.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import ClassVar, Literal

import onnx_ir as ir

from onnxq.errors import FormatError, UnsupportedGraph
from onnxq.formats import IntFormat, PerGroup, parse_format
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.stage import Stage
from onnxq.passes.base import Context, Pass, PassReport, Promise, SiteReport
from onnxq.passes.weight_forms import gather_refusal, matmul_nbits_refusal, minimum_opset
from onnxq.passes.weight_writing import WeightWriter

Write = Literal["auto", "dequantize", "matmul_nbits"]

_LINEAR = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_FLOAT = "float"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Weight-only quantization of every linear site, rounding to nearest.

    Matches: MatMul, Gemm, Conv and ConvTranspose with a constant weight; Gather of a constant
    table when ``embedding_format`` is set. In subgraphs too.
    Writes: DequantizeLinear (blocked for groups), MatMulNBits or GatherBlockQuantized.
    Leaves: computed weights, weights already quantized, sites inside functions, and what
    ``exclude`` and ``overrides`` say; each with its reason.

    Attributes:
        format: the format of the weights, e.g. ``int8_channel``, ``int4_g128``, ``int2_g64_asym``.
        write: how they are written; ``auto`` takes MatMulNBits where it can hold the format and
            DequantizeLinear elsewhere.
        embedding_format: the format of embedding tables; ``float`` leaves them alone.
        overrides: format by site name pattern (first match wins); ``float`` leaves a site alone.
        exclude: name patterns of sites to leave in float.
        search: how scales are found: ``minmax``, or ``mse`` (a grid search for the least squares).
        accuracy_level: 4 lets MatMulNBits round activations to 8 bits per block; 0 does not.
    """

    format: str = "int4_g128"
    write: Write = "auto"
    embedding_format: str = _FLOAT
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    search: Literal["minmax", "mse"] = "minmax"
    accuracy_level: Literal[0, 1, 4] = 4

    promise: ClassVar[Promise] = Promise.CLOSE
    gives_stage: ClassVar[Stage | None] = Stage.QUANTIZED

    def requires(self, model: ir.Model) -> None:
        """Raise unless there is something to quantize and the opset can express it."""
        found = find_sites(model)
        sites = [site for site in found if site.kind in (*_LINEAR, "Gather")]
        done = [site for site in found if site.already]
        if done and not any(site.already is None and site.refusal is None for site in sites):
            raise UnsupportedGraph(
                f"The model is already quantized: {done[0].name!r} is {done[0].already}, and no "
                "float weight is left. Quantize the float model it was made from."
            )
        formats = {self._format_of(site) for site in sites if site.refusal is None}
        wanted = max((minimum_opset(fmt, self.write) for fmt in formats if fmt), default=0)
        opset = model.opset_imports.get("", 0)
        if opset < wanted:
            raise UnsupportedGraph(
                f"The formats asked for need opset {wanted} (block-wise DequantizeLinear), and "
                f"the model has {opset}: put convert_opset with minimum={wanted} earlier in the "
                "recipe, or set write=matmul_nbits."
            )

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Quantize site by site; the largest weight is all that is in memory at once."""
        writer = WeightWriter(model, context.scratch, self.search, self.accuracy_level)
        found = find_sites(model)
        sites = [s for s in found if s.kind in _LINEAR or s.already or s.refusal]
        tables = [s for s in found if s.kind == "Gather" and s not in sites]
        reports = []
        for number, site in enumerate((*sites, *tables)):
            context.progress("quantize weights", number, len(sites) + len(tables))
            try:
                reports.append(self._visit(site, writer))
            except FormatError as error:
                weight = site.weight.name if site.weight is not None else None
                raise FormatError(f"Weight {weight!r} of {site.name!r}: {error}") from error
        writer.remove_unused()
        modified = any(report.reason is None for report in reports)
        return PassReport(modified=modified, sites=tuple(reports))

    def _visit(self, site: Site, writer: WeightWriter) -> SiteReport:
        fmt = self._format_of(site)
        reason = self._refusal(site, fmt)
        if reason is not None or fmt is None:
            return SiteReport(site=site.name, reason=reason)
        if site.kind == "Gather":
            return writer.gather_block_quantized(site, fmt)
        if self.write != "dequantize" and matmul_nbits_refusal(site, fmt) is None:
            return writer.matmul_nbits(site, fmt)
        return writer.dequantize(site, fmt)

    def _format_of(self, site: Site) -> IntFormat | None:
        """The format asked for; None for float."""
        if any(fnmatch.fnmatchcase(site.name, pattern) for pattern in self.exclude):
            return None
        base = self.embedding_format if site.kind == "Gather" else self.format
        for pattern, text in self.overrides.items():
            if fnmatch.fnmatchcase(site.name, pattern):
                base = text
                break
        return None if base == _FLOAT else parse_format(base)

    def _refusal(self, site: Site, fmt: IntFormat | None) -> str | None:
        if site.already is not None:
            return f"it is already quantized ({site.already})"
        if site.refusal is not None:
            return site.refusal
        if site.node.graph is None or isinstance(site.node.graph, ir.Function):
            return "it is inside a function, which cannot hold weights: inline functions first"
        if fmt is None:
            return "the recipe leaves it in float"
        if site.kind == "Gather":
            return gather_refusal(site, fmt)
        if self.write == "matmul_nbits":
            return matmul_nbits_refusal(site, fmt)
        if site.kind in ("Conv", "ConvTranspose") and isinstance(fmt.granularity, PerGroup):
            return f"{fmt} groups inputs, and a {site.kind} takes one scale per channel or tensor"
        return None
