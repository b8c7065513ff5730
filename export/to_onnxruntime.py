"""Deploy to ONNX Runtime's CPU provider: the model, how to open its session, our kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.custom_ops.catalog import has_kernels
from onnxq.errors import ArtifactError, OnnxqError, UnsupportedGraph
from onnxq.export.check import relative_error
from onnxq.export.genai import copy_companions
from onnxq.export.onnxruntime_kernels import KernelIndex
from onnxq.export.onnxruntime_pairs import wasted_pairs
from onnxq.export.onnxruntime_sites import quantized_sites
from onnxq.export.operator_library import bundle_library
from onnxq.export.same_outputs import NOT_COMPARED, random_runs
from onnxq.export.session_options import open_built, write_options
from onnxq.export.target import DeploymentTarget, Execution, Observed, SiteVerdict, Verdicts
from onnxq.graph import find_sites, infer_shapes, load, save
from onnxq.graph.reading import find_model_file
from onnxq.graph.stage import clone_model
from onnxq.graph.walk import site_name, walk_nodes
from onnxq.runtime import open_session, ops_library
from onnxq.runtime.optimized import OptimizedModel, optimized_model

__all__ = ["OnnxRuntimeCpu", "session_config"]

_SAMPLES = 2
_SAME = 1e-5
"""Largest relative difference of the built model: it is the same graph, run by the same kernels;
only the number of threads may change the order of sums."""
_FUSED_LEVEL = "session.qdq_matmulnbits_accuracy_level"
_NO_OVERFLOW = "session.x64quantprecision"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxRuntimeCpu(DeploymentTarget):
    """ONNX Runtime on x86-64 processors.

    Attributes:
        library: ship the library of onnxq's operators where the model uses them; without it their
            functions run.
    """

    library: bool = True

    name: ClassVar[str] = "onnxruntime-cpu"
    title: ClassVar[str] = "ONNX Runtime, CPU"

    def check(self, model: ir.Model) -> Verdicts:
        """The kernel of each site by the table of `onnxq.export.onnxruntime_rules`."""
        inferred = clone_model(model)
        infer_shapes(inferred)
        sites = tuple(quantized_sites(inferred, library=self._has_library()))
        return Verdicts(
            target=self.name,
            sites=sites,
            wasted=tuple(wasted_pairs(inferred)),
            notes=tuple(_notes(inferred)),
        )

    def observe(
        self, model: ir.Model, verdicts: Verdicts, sample: Mapping[str, np.ndarray] | None = None
    ) -> Observed:
        """The kernels of ONNX Runtime's optimized graph and, where it runs, of its profile.

        Raises:
            OnnxqError: the runtime does not load the model, or does not run it on ``sample``.
        """
        optimized, note = self._optimized(model, verdicts, sample)
        index = KernelIndex(optimized)
        kernels = {site.name: index.kernel(site) for site in find_sites(model)}
        for path, node in walk_nodes(model):
            if has_kernels(node):
                found = index.named(node.name or "")
                ours = found is not None and found.domain == node.domain
                kernels[site_name(path, node)] = node.op_type if ours else "function"
        differences = [
            f"{verdict.site}: the rule {verdict.rule} says {verdict.kernel or 'float'}, and ONNX "
            f"Runtime runs {kernels.get(verdict.site) or 'something that is not found'}"
            for verdict in verdicts.sites
            if not _agrees(verdict, kernels.get(verdict.site))
        ]
        shown = {name: kernel or "not found" for name, kernel in kernels.items()}
        return Observed(kernels=shown, differences=differences, note=note)

    def _optimized(
        self, model: ir.Model, verdicts: Verdicts, sample: Mapping[str, np.ndarray] | None
    ) -> tuple[OptimizedModel, str]:
        """The model as the runtime has it, and whether it also ran."""
        library = self._has_library()
        if any(site.execution is Execution.UNSUPPORTED for site in verdicts.sites):
            seen = optimized_model(model, run=False, custom_ops=library)
            return (
                seen,
                "the optimized graph; not run, as a kernel in it fails or errs",
            )
        if sample is not None:
            seen = optimized_model(model, sample=sample, custom_ops=library)
            return seen, "the optimized graph and the profile of one run"
        try:
            seen = optimized_model(model, custom_ops=library)
        except UnsupportedGraph:
            raise
        except OnnxqError:
            seen = optimized_model(model, run=False, custom_ops=library)
            return seen, "the optimized graph; it does not run on random inputs: give data"
        return seen, "the optimized graph and the profile of one run on random inputs"

    def build(self, source: Path, staging: Path) -> Mapping[str, Any]:
        """Write the model, ``session_options.json`` and the library; load, run and compare.

        Raises:
            ArtifactError: the built model computes something else than the one it came from.
            UnsupportedGraph: ONNX Runtime does not take the model.
        """
        file = find_model_file(source)
        model = load(file)
        save(model, staging / "model.onnx")
        copy_companions(file.parent, staging, renamed={file.name: "model.onnx"})
        library = self._bundle(model, staging)
        write_options(staging, session_config(self.check(model)), library)
        return {"library": library or "not needed", **_same_outputs(file, staging)}

    def run(
        self, folder: Path, samples: Sequence[Mapping[str, np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        """What the folder computes, opened by its options alone."""
        with open_built(folder) as session:
            return [session.run(sample) for sample in samples]

    def _bundle(self, model: ir.Model, staging: Path) -> str | None:
        """Name of the library in the folder; None when it is not needed or not wanted."""
        if not self.library:
            return None
        bundle_library(model, staging)
        name = Path(ops_library()).name if self._has_library() else ""
        return name if name and (staging / name).exists() else None

    def _has_library(self) -> bool:
        if not self.library:
            return False
        try:
            ops_library()
        except OnnxqError:
            return False
        return True


def _agrees(verdict: SiteVerdict, kernel: str | None) -> bool:
    """Whether what ran is what the rule said."""
    if verdict.execution is Execution.FUNCTION:
        return kernel == "function"
    if verdict.execution is Execution.FLOAT:
        return kernel is None or not _is_quantized(kernel)
    return kernel == verdict.kernel


def _is_quantized(kernel: str) -> bool:
    marks = ("DequantizeLinear", "QLinear", "Integer", "QGemm", "NBits", "DynamicQuantize")
    return kernel.startswith(marks) or any(mark in kernel for mark in marks[1:])


def _notes(model: ir.Model) -> list[str]:
    used = sorted({node.op_type for _, node in walk_nodes(model) if has_kernels(node)})
    return [f"operators of onnxq: {', '.join(used)}"] if used else []


def session_config(verdicts: Verdicts) -> dict[str, tuple[str, str]]:
    """Entries of the session configuration that the model needs, each with the reason."""
    config = {}
    if any(site.rule == "weight-only-nbits" for site in verdicts.sites):
        config[_FUSED_LEVEL] = (
            "4",
            "MatMulNBits made from DequantizeLinear and MatMul rounds activations to 8 bits by "
            "blocks; without it 2 and 8 bits are slower than float32",
        )
    if any(site.execution is Execution.INTEGER for site in verdicts.sites):
        config[_NO_OVERFLOW] = (
            "1",
            "on x86-64 processors without VNNI, sums of two products of uint8 and int8 saturate; "
            "this makes weights unsigned there, and changes nothing elsewhere",
        )
    return config


def _same_outputs(source: Path, folder: Path) -> dict[str, Any]:
    """Run the model it came from and the built folder on the same inputs."""
    errors: dict[str, float] = {}
    with open_session(source) as before, open_built(folder) as after:
        runs = random_runs(before, _SAMPLES)
        if not runs:
            return {"loaded": True, "outputs": NOT_COMPARED}
        for sample, wanted in runs:
            found = after.run(sample)
            for name, value in wanted.items():
                error = _output_difference(found[name], value)
                errors[name] = max(errors.get(name, 0.0), error)
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= _SAME:
        raise ArtifactError(
            f"The built model differs from {source} by {errors[worst]:.3g} (relative) in output "
            f"{worst!r}, opened as its session_options.json says: report the model."
        )
    return {"samples": len(runs), "largest relative difference": errors[worst]}


def _output_difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Relative difference of an output; of integers 0 or infinity."""
    if wanted.dtype.kind not in "fV":
        return 0.0 if np.array_equal(found, wanted) else float("inf")
    return relative_error(found, wanted)
