"""Deploy to ONNX Runtime's CUDA provider: which forms it is fast on, by a table.

Read from the list of kernels (onnxruntime, docs/OperatorKernels.md) and from the providers that
each QDQ fusion is registered for (qdq_selector_action_transformer.cc). Nothing of it is run here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.errors import UsageError
from onnxq.export.onnxruntime_sites import bits_of_products
from onnxq.export.session_options import name_providers
from onnxq.export.target import Execution, Observed, SiteVerdict, Verdicts
from onnxq.export.to_onnxruntime import OnnxRuntimeCpu
from onnxq.graph import is_weight
from onnxq.graph.walk import is_operator_body, site_name, walk_nodes

__all__ = ["OnnxRuntimeCuda"]

_FUSED_ON_CPU = ("qdq-", "weight-requantized", "weight-scales", "bias-scale-ignored")
_ON_CUDA = ("MatMulNBits", "GatherBlockQuantized", "MatMulBnb4", "QMoE", "QAttention")
_BITS = (4, 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxRuntimeCuda(OnnxRuntimeCpu):
    """ONNX Runtime on NVIDIA GPUs: MatMulNBits and operators of onnxq are fast, QDQ is not."""

    name: ClassVar[str] = "onnxruntime-cuda"
    title: ClassVar[str] = "ONNX Runtime, CUDA"

    def check(self, model: ir.Model) -> Verdicts:
        """What the CUDA provider has for each site; every QDQ pair of an activation is waste."""
        verdicts = super().check(model)
        bits = bits_of_products(model)
        sites = [_on_cuda(site, bits.get(site.site)) for site in verdicts.sites]
        notes = [*verdicts.notes, "not run here: the CUDA provider needs a GPU", *_notes(model)]
        return dataclasses.replace(
            verdicts, target=self.name, sites=sites, wasted=tuple(_pairs(model)), notes=notes
        )

    def observe(
        self, model: ir.Model, verdicts: Verdicts, sample: Mapping[str, np.ndarray] | None = None
    ) -> Observed:
        """Refuses: what CUDA runs can be asked on a machine with a GPU only."""
        raise UsageError(
            f"Target {self.name!r} is not run here: check without --run, and run the built folder "
            "on a machine with a GPU and onnxruntime-gpu."
        )

    def build(self, source: Path, staging: Path) -> Mapping[str, Any]:
        """The folder of the CPU provider, with CUDA first; verified on the CPU alone."""
        verified = super().build(source, staging)
        name_providers(staging, ("CUDAExecutionProvider", "CPUExecutionProvider"))
        return {**verified, "cuda": "not run here"}

    def run(
        self, folder: Path, samples: Sequence[Mapping[str, np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        """Refuses: the CUDA provider needs a GPU."""
        raise UsageError("the CUDA provider needs a GPU; the build was verified on the CPU")


def _on_cuda(verdict: SiteVerdict, bits: int | None) -> SiteVerdict:
    """The verdict of the CPU provider, for CUDA."""
    if verdict.rule.startswith(_FUSED_ON_CPU):
        return dataclasses.replace(
            verdict,
            execution=Execution.DEQUANTIZED,
            rule="cuda-no-integer-fusion",
            kernel=None,
            reason="QDQ becomes integer kernels on the CPU only: quantize weights alone, in 4 or 8 "
            "bits (MatMulNBits), or build for TensorRT",
        )
    if verdict.kernel == "MatMulNBits" and bits not in (None, *_BITS):
        return dataclasses.replace(
            verdict,
            execution=Execution.UNSUPPORTED,
            rule="cuda-nbits-bits",
            reason=f"MatMulNBits of {bits} bits has no CUDA kernel: use 4 or 8 bits, or operators "
            "of onnxq (write=operator)",
        )
    if verdict.execution is Execution.INTEGER and verdict.kernel not in _ON_CUDA:
        return dataclasses.replace(
            verdict,
            execution=Execution.ELSEWHERE,
            rule="cuda-integer-operator",
            reason=f"{verdict.kernel} runs on the CPU, with a copy to it and back: quantize "
            "weights alone, in 4 or 8 bits (MatMulNBits)",
        )
    return verdict


def _pairs(model: ir.Model) -> Iterator[SiteVerdict]:
    """Every QuantizeLinear of an activation."""
    for path, node in walk_nodes(model):
        is_pair = node.op_type == "QuantizeLinear" and not is_operator_body(path)
        if is_pair and not is_weight(node.inputs[0]):
            yield SiteVerdict(
                site=site_name(path, node),
                execution=Execution.DEQUANTIZED,
                rule="cuda-pair",
                kernel="QuantizeLinear, DequantizeLinear",
                reason="no CUDA kernel of ONNX Runtime reads or writes these codes",
            )


def _notes(model: ir.Model) -> Iterator[str]:
    attention = [node for _, node in walk_nodes(model) if node.op_type == "GroupQueryAttention"]
    first = attention[0].inputs[0] if attention else None
    if first is not None and first.dtype == ir.DataType.FLOAT:
        yield (
            f"cuda-attention-half: {len(attention)} GroupQueryAttention in float32 run on the CPU; "
            "the CUDA kernel takes float16 and bfloat16"
        )
