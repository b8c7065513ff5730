"""Engines for NVIDIA GPUs: TensorRT, and TensorRT for RTX, which builds without a GPU.

Both take ONNX through the same parser and compute in the types that the model states. TensorRT
measures its kernels on the GPU that it builds on; TensorRT for RTX compiles ahead of time for the
generations asked for and finishes the work on the user's machine, so its engines are built, and
models refused, on any machine: that is the gate that runs in CI.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.errors import MissingDependency, UnsupportedGraph, UsageError
from onnxq.export.genai import copy_companions
from onnxq.export.target import DeploymentTarget, Verdicts
from onnxq.export.tensorrt_engine import Engine, build_engine
from onnxq.export.tensorrt_plan import products_of
from onnxq.export.tensorrt_plugins import PluginChoice, plugin_choice, use_plugins
from onnxq.export.tensorrt_polygraphy import build_with_polygraphy, compare_engine, has_gpu
from onnxq.export.tensorrt_profiles import Shape, forget_question_marks, input_shapes
from onnxq.export.tensorrt_reading import Reading
from onnxq.export.tensorrt_rules import Effect, find_violations
from onnxq.export.tensorrt_verdicts import judge_sites
from onnxq.export.to_float16 import to_float16
from onnxq.export.to_nvfp4 import to_nvfp4
from onnxq.graph import clone_model, load, save

__all__ = ["TensorRt", "TensorRtRtx"]

_ENGINE = ".engine"
_CACHE = "timing.cache"
_NOT_HERE = "an engine for RTX GPUs is loaded on the GPU it is for"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Engines(DeploymentTarget):
    """What both have in common.

    Attributes:
        shapes: (least, best, most) sizes of dynamic dimensions, by name, ``input.axis`` or role
            (batch, sequence, cache, size); see `onnxq.export.tensorrt_profiles`.
        float16: compute in float16 what the model computes in float32; inputs and outputs stay.
        fp4: compute matrix products with constant weights in NVFP4, activations rounded as the
            model runs; see `onnxq.export.to_nvfp4`.
        weight_streaming: let weights stay in host memory and stream to the GPU as they are used.
    """

    shapes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    float16: bool = False
    fp4: bool = False
    weight_streaming: bool = False

    def check(self, model: ir.Model) -> Verdicts:
        """What it will do with each site, by the rules of `onnxq.export.tensorrt_rules`."""
        prepared = self._rewritten(model)
        return judge_sites(Reading(prepared, self.name, self._capabilities(), self._plugins()))

    def build(self, source: Path, staging: Path) -> Mapping[str, Any]:
        """Build an engine of every ONNX file of ``source``; tokenizers and the like come along.

        Raises:
            UnsupportedGraph: parser or builder refuse a model: their sentence, and the rules that
                the model breaks.
            UsageError: shapes or compute capabilities that do not fit.
            MissingDependency: the runtime is not installed.
        """
        runtime = self._import()
        files = sorted(source.glob("*.onnx")) if source.is_dir() else [source]
        if not files:
            raise UsageError(f"{str(source)!r} holds no ONNX file to build an engine of.")
        verified: dict[str, Any] = {}
        for path in files:
            verified[path.stem + _ENGINE] = self._build_one(runtime, path, staging)
        if source.is_dir():
            copy_companions(source, staging)
        return verified

    def _build_one(self, runtime: Any, path: Path, staging: Path) -> dict[str, Any]:
        model = load(path)
        shapes = input_shapes(model, self.shapes)
        self._refuse_misread(model, path)
        with self._prepared(model, path) as prepared:
            try:
                engine = self._engine(runtime, prepared, shapes)
            except UnsupportedGraph as error:
                raise UnsupportedGraph(f"{error}{self._broken_rules(model)}") from error
            (staging / (path.stem + _ENGINE)).write_bytes(engine.plan)
            if engine.timing_cache:
                (staging / f"{path.stem}.{_CACHE}").write_bytes(engine.timing_cache)
            found = {
                "engine": "built",
                "runtime": f"{runtime.__name__} {runtime.__version__}",
                "bytes": len(engine.plan),
                "layers": engine.layers,
                "shapes": {s.name: [s.least, s.best, s.most] for s in shapes if s.is_dynamic},
                "outputs": self._compare(prepared, engine, shapes),
            }
        found |= self._products(engine, model)
        if engine.warnings:
            found["warnings"] = list(engine.warnings)
        return found

    @contextlib.contextmanager
    def _prepared(self, model: ir.Model, path: Path) -> Iterator[Path]:
        """The file that is parsed: the given one, or a rewritten copy while it is needed."""
        prepared = clone_model(self._rewritten(model))
        is_named = not forget_question_marks(prepared)
        if is_named and not self._plugins() and not self.float16 and not self.fp4:
            yield path
            return
        use_plugins(prepared, self._plugins())
        with tempfile.TemporaryDirectory(prefix="onnxq-tensorrt-") as folder:
            yield save(prepared, Path(folder) / path.name)

    def _rewritten(self, model: ir.Model) -> ir.Model:
        """The model in the precision asked for: a copy, or itself where nothing is asked."""
        if not self.float16 and not self.fp4:
            return model
        copy = clone_model(model)
        if self.float16:
            to_float16(copy)
        if self.fp4:
            to_nvfp4(copy)
        return copy

    def _refuse_misread(self, model: ir.Model, path: Path) -> None:
        """Refuse what parser and builder would take, and compute wrongly."""
        reading = Reading(model, self.name, self._capabilities(), self._plugins())
        misread = [v for v in find_violations(reading) if v.rule.effect is Effect.MISREAD]
        if misread:
            raise UnsupportedGraph(
                f"TensorRT would read {path.name} otherwise than ONNX means it, so no engine is "
                "built:" + "".join(f"\n  {v.finding.name}: {v}" for v in misread[:3])
            )

    def _broken_rules(self, model: ir.Model) -> str:
        verdicts = self.check(model)
        broken = [v for v in verdicts.sites if v.execution.value == "unsupported"]
        return "".join(f"\n  {v.site}: {v.reason} [{v.rule}]" for v in broken[:3])

    def _capabilities(self) -> tuple[int, ...]:
        return ()

    def _plugins(self) -> tuple[str, ...]:
        return ()

    def _import(self) -> Any:
        raise NotImplementedError

    def _engine(self, runtime: Any, path: Path, shapes: Sequence[Shape]) -> Engine:
        raise NotImplementedError

    def _compare(self, path: Path, engine: Engine, shapes: Sequence[Shape]) -> Any:
        raise NotImplementedError

    def _products(self, engine: Engine, model: ir.Model) -> dict[str, Any]:
        """What the engine shows of its products; nothing where it shows none."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorRtRtx(_Engines):
    """TensorRT for RTX: engines for whole generations of GPUs, built on any machine.

    It has no plugins: operators of onnxq run as their functions. Nothing runs the engine here.

    Attributes:
        capabilities: compute capabilities to build for, as major × 10 + minor: 75, 80, 86, 89, 120.
            FP8 needs 89, FP4 needs 120, for each of them.
    """

    name: ClassVar[str] = "tensorrt-rtx"
    title: ClassVar[str] = "TensorRT for RTX, built ahead of time for GeForce and RTX GPUs"
    capabilities: tuple[int, ...] = (80, 89, 120)

    def _capabilities(self) -> tuple[int, ...]:
        return self.capabilities

    def _import(self) -> Any:
        try:
            import tensorrt_rtx
        except ImportError as error:
            raise MissingDependency(
                "tensorrt-rtx-cu13", "tensorrt-rtx", "Building engines for tensorrt-rtx"
            ) from error
        return tensorrt_rtx

    def _engine(self, runtime: Any, path: Path, shapes: Sequence[Shape]) -> Engine:
        return build_engine(
            runtime,
            path,
            shapes,
            capabilities=self.capabilities,
            weight_streaming=self.weight_streaming,
        )

    def run(
        self, folder: Path, samples: Sequence[Mapping[str, np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        """Refuses: engines are loaded on the GPU that they are for."""
        raise UsageError(_NOT_HERE)

    def _compare(self, path: Path, engine: Engine, shapes: Sequence[Shape]) -> str:
        return f"not compared: {_NOT_HERE}"

    def _products(self, engine: Engine, model: ir.Model) -> dict[str, Any]:
        """Counts of the products that the plan shows, and the sites that run unlike `check` said.

        Plans for several GPUs show the same products several times over, and are not read.
        """
        products = products_of(engine.plan) if len(self.capabilities) == 1 else {}
        if not products:
            return {}
        said = {v.site: v.execution for v in self.check(model).sites}
        unlike = {
            name: f"said {said[name].value}, runs {product.execution.value}"
            for name, product in products.items()
            if name in said and not product.agrees(said[name])
        }
        counts = Counter(product.execution.value for product in products.values())
        return {"products": dict(counts), "unlike": unlike}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorRt(_Engines):
    """TensorRT: the fastest kernels of the GPU that the engine is built on, through Polygraphy.

    Attributes:
        plugins: what computes operators of onnxq instead of their functions: ``onnxq`` for the
            library of this installation, a path of another build of it, ``python`` for plugins
            whose kernels go into the engine, or operators that the program has registered plugins
            for; see `onnxq.export.tensorrt_plugins`.
        timing_cache: file with the kernel times of an earlier build; one is always written.
    """

    name: ClassVar[str] = "tensorrt"
    title: ClassVar[str] = "TensorRT on data-centre and Jetson GPUs"
    plugins: str | tuple[str, ...] = ()
    timing_cache: Path | None = None

    def build(self, source: Path, staging: Path) -> Mapping[str, Any]:
        """As every engine; a library of plugins comes along, to be loaded before the engine."""
        verified = dict(super().build(source, staging))
        for path in self._choice().load(self._import()):
            shutil.copyfile(path, staging / path.name)
            verified[path.name] = "plugins: load this library before the engine"
        return verified

    def _choice(self) -> PluginChoice:
        return plugin_choice(self.plugins)

    def _plugins(self) -> tuple[str, ...]:
        return self._choice().operators

    def _import(self) -> Any:
        try:
            import tensorrt
        except ImportError as error:
            raise MissingDependency(
                "tensorrt", "tensorrt", "Building engines for tensorrt"
            ) from error
        return tensorrt

    def _engine(self, runtime: Any, path: Path, shapes: Sequence[Shape]) -> Engine:
        self._choice().load(runtime)
        return build_with_polygraphy(
            runtime,
            path,
            shapes,
            timing_cache=self.timing_cache,
            weight_streaming=self.weight_streaming,
        )

    def _compare(self, path: Path, engine: Engine, shapes: Sequence[Shape]) -> Any:
        if not has_gpu():
            return "not compared: there is no GPU"
        return compare_engine(path, engine, shapes)
