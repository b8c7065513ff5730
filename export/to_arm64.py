"""Deploy to 64-bit ARM Linux: the model, how to open its session, our operators for ARM.

The library is cross-compiled, and the folder run by ONNX Runtime's own wheel for ARM under QEMU
where that is installed: on the fewest instructions that the folder may meet, unless another CPU is
asked for.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxq.custom_ops.catalog import has_kernels
from onnxq.errors import OnnxqError
from onnxq.export.arm64_library import LIBRARY_NAME, arm64_library, needs_of, require_arm64
from onnxq.export.arm64_machine import Arm64Machine, Job, arm64_machine
from onnxq.export.genai import copy_companions, read_json
from onnxq.export.onnxruntime_pairs import wasted_pairs
from onnxq.export.onnxruntime_sites import bits_of_products, quantized_sites
from onnxq.export.same_outputs import NOT_COMPARED, compare_runtimes, random_runs
from onnxq.export.session_options import OPTIONS, write_options
from onnxq.export.target import Execution, SiteVerdict, Verdicts
from onnxq.export.to_onnxruntime import OnnxRuntimeCpu, session_config
from onnxq.export.web_form import spell_out_blocks
from onnxq.graph import clone_model, infer_shapes, load, save
from onnxq.graph.reading import find_model_file
from onnxq.graph.walk import walk_nodes
from onnxq.runtime import open_session, random_samples
from onnxq.runtime.optimized import OptimizedModel, optimizing_config, read_optimized

__all__ = ["Arm64"]

_BASELINE = "cortex-a72"
_X86_ALONE = "session.x64quantprecision"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm64(OnnxRuntimeCpu):
    """ONNX Runtime on 64-bit ARM processors with Linux: servers, Raspberry Pi, Jetson's CPU.

    Attributes:
        compiler: a C++ compiler for 64-bit ARM Linux, for the library of operators.
        built_library: that library from an earlier build; None compiles it where a model needs it.
        cpu: the processor that it is for, and that QEMU is where a folder is run: a Cortex-A72 has
            no products of four bytes, a Neoverse N1 has, a Neoverse V1 has matrix products too.
    """

    compiler: str = "aarch64-linux-gnu-g++"
    built_library: Path | None = None
    cpu: Literal["cortex-a72", "neoverse-n1", "neoverse-v1"] = "neoverse-n1"

    name: ClassVar[str] = "arm64"
    title: ClassVar[str] = "ONNX Runtime, 64-bit ARM Linux"

    def check(self, model: ir.Model) -> Verdicts:
        """The kernel of each site; int8 activations stay int8 here, which x86-64 makes uint8."""
        inferred = clone_model(model)
        infer_shapes(inferred)
        notes = []
        if used := _operators(inferred):
            notes.append(f"operators of onnxq: {', '.join(used)}")
        sites = quantized_sites(inferred, library=self.library, signed=True)
        if self.cpu == _BASELINE:
            bits = bits_of_products(inferred)
            sites = (_without_dot(site, bits.get(site.site)) for site in sites)
        return Verdicts(
            target=self.name,
            sites=tuple(sites),
            wasted=tuple(wasted_pairs(inferred, signed=True)),
            notes=notes,
        )

    def build(self, source: Path, staging: Path) -> Mapping[str, Any]:
        """Write the model, ``session_options.json`` and the library; run them where QEMU is.

        Raises:
            MissingProgram: the model needs the library, and its compiler is not installed.
            ExportError: the library does not compile, or is for another processor.
            ArtifactError: the folder computes something else than ONNX Runtime does here.
        """
        file = find_model_file(source)
        model = load(file)
        save(model, staging / "model.onnx")
        copy_companions(file.parent, staging, renamed={file.name: "model.onnx"})
        library = self._library(model)
        found: dict[str, Any] = {"library": "not needed"}
        if library is not None:
            shutil.copyfile(library, staging / LIBRARY_NAME)
            found = {"library": f"cross-compiled; needs {', '.join(needs_of(library))}"}
        config = session_config(self.check(model))
        config.pop(_X86_ALONE, None)
        write_options(staging, config, LIBRARY_NAME if library else None)
        return {**found, **self._verify(file, staging)}

    def run(
        self, folder: Path, samples: Sequence[Mapping[str, np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        """What the folder computes with ONNX Runtime's wheel for ARM, under QEMU."""
        return self._run(arm64_machine(), folder, samples)

    def _run(
        self, machine: Arm64Machine, folder: Path, samples: Sequence[Mapping[str, np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        options = read_json(folder / OPTIONS)
        library = options.get("custom_ops_library")
        job = Job(
            model=folder / "model.onnx",
            samples=samples,
            config=options.get("config", {}),
            library=folder / library if library else None,
        )
        return machine.run([job], self.cpu)[0]

    def _verify(self, source: Path, folder: Path) -> dict[str, Any]:
        runtime = f"ONNX Runtime on {self.cpu} under QEMU"
        try:
            machine = arm64_machine()
        except OnnxqError as error:
            return {runtime: f"not run: {error}"}
        with open_session(source, custom_ops=self.library) as session:
            runs = random_runs(session, 1)
        if not runs:
            return {runtime: NOT_COMPARED}
        ((feeds, wanted),) = runs
        (found,) = self._run(machine, folder, [feeds])

        def exact() -> dict[str, np.ndarray]:
            """Without the kernels of MatMulNBits, which round activations."""
            spelled = load(source)
            spell_out_blocks(spelled)
            with open_session(spelled, optimize=False, custom_ops=False) as session:
                return session.run(feeds)

        pairs = {name: (wanted[name], found[name]) for name in wanted}
        compared = compare_runtimes(runtime, pairs, exact)
        return {runtime: "ran", "outputs": compared}

    def _library(self, model: ir.Model) -> Path | None:
        """The library that the model needs; None where it needs none, or none is wanted."""
        if not self.library or not _operators(model):
            return None
        if self.built_library is None:
            return arm64_library(self.compiler)
        require_arm64(self.built_library)
        return self.built_library

    def _optimized(
        self, model: ir.Model, verdicts: Verdicts, sample: Mapping[str, np.ndarray] | None
    ) -> tuple[OptimizedModel, str]:
        """The model as ONNX Runtime on ARM has it, and the profile of a run under QEMU."""
        machine = arm64_machine()
        with tempfile.TemporaryDirectory(prefix="onnxq-arm64-") as name:
            folder = Path(name)
            path = save(model, folder / "model.onnx")
            if sample is None:
                with open_session(path) as session:
                    (sample,) = random_samples(session, 1)
            (folder / "seen").mkdir()
            job = Job(
                model=path,
                samples=[sample],
                config=optimizing_config(),
                library=self._library(model),
                optimized=folder / "seen",
            )
            machine.run([job], self.cpu)
            seen = read_optimized(folder / "seen")
        return seen, f"the optimized graph and the profile of one run on {self.cpu} under QEMU"


def _without_dot(verdict: SiteVerdict, bits: int | None) -> SiteVerdict:
    """The verdict of a processor without products of four bytes."""
    if bits in (None, 4) or verdict.kernel != "MatMulNBits":
        return verdict
    return dataclasses.replace(
        verdict,
        execution=Execution.DEQUANTIZED,
        rule="arm-nbits-without-dot",
        reason=f"MatMulNBits of {bits} bits multiplies in integers with products of four bytes "
        "alone, which this processor has not: use 4 bits, or operators of onnxq (write=operator)",
    )


def _operators(model: ir.Model) -> list[str]:
    return sorted({node.op_type for _, node in walk_nodes(model) if has_kernels(node)})
