"""What a pass is: configuration, promise, preconditions, one call, and a report of every site.

A pass is a frozen, keyword-only dataclass. Its fields are its whole configuration, so ``repr()``
is its provenance and a recipe row maps to it one to one. The recipe runner (`recipe.py`) calls
``requires``, ``call`` and then checks the promise on real inputs.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.errors import CalibrationError
from onnxq.graph.scratch import Scratch
from onnxq.graph.stage import Stage
from onnxq.runtime.memory_settings import MemorySettings
from onnxq.runtime.work_folder import WorkFolder
from onnxq.runtime.workers import Workers

Samples = Iterable[Mapping[str, np.ndarray]]
"""Model inputs by name, one mapping per sample; iterated more than once."""

Progress = Callable[[str, int, int], None]
"""Called with (what is being worked on, done, total); total 0 means unknown."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing: the default of `Context.progress`."""


class Promise(enum.Enum):
    """What a pass promises about the outputs of the model it returns."""

    SAME_BITS = "same_bits"
    """Bit-identical outputs with graph optimizations off."""
    SAME_FUNCTION = "same_function"
    """Equal up to float rounding: no worse than ten times what ONNX Runtime's own graph
    optimizations change on the same inputs."""
    CLOSE = "close"
    """Quantized: finite wherever the input model was, and closer to it than an all-zero output."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What a pass may use besides the model: never anything that changes the model itself.

    Attributes:
        samples: calibration inputs, or None when the recipe was run without data.
        progress: called as long work proceeds.
        scratch: keeps large new tensors on disk until the model is saved.
        workers: make pieces of work that do not depend on each other.
        work: keeps finished pieces for another run; None keeps nothing.
        memory: what is kept in memory and what on disk.
        origin: a hash of all that the model and the samples of this pass follow from, its own
            options not counted; keys of finished pieces begin with it.
    """

    samples: Samples | None = None
    progress: Progress = no_progress
    scratch: Scratch = dataclasses.field(default_factory=Scratch)
    workers: Workers = dataclasses.field(default_factory=Workers)
    work: WorkFolder | None = None
    memory: MemorySettings = dataclasses.field(default_factory=MemorySettings)
    origin: str = ""

    def needed_samples(self, refusal: str) -> Samples:
        """The samples, for a pass that cannot do without.

        Args:
            refusal: what to say when there are none: what for, and what to do.

        Raises:
            CalibrationError: the recipe was run without data.
        """
        if self.samples is None:
            raise CalibrationError(refusal)
        return self.samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteReport:
    """What a pass did to one site.

    Attributes:
        site: name of the node (with its subgraph or function path when nested).
        reason: why the site was left alone, as a sentence; None when it was changed.
        format: the format written, e.g. ``int4_g128``.
        bits: bits per weight including scales and zero points.
        error: relative error of the weight, ‖W − Ŵ‖ / ‖W‖ (Frobenius); None when not known.
        nbytes: stored bytes of the weight, all overheads counted.
        solver: how its codes were chosen, when the pass has a choice.
        output_error: relative error of what it puts out on the calibration data,
            √(E‖(W − Ŵ) x‖² / E‖W x‖²); None when no data were used.
        note: what a reader should know of a site that was changed.
    """

    site: str
    reason: str | None = None
    format: str | None = None
    bits: float | None = None
    error: float | None = None
    nbytes: int | None = None
    solver: str | None = None
    output_error: float | None = None
    note: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassReport:
    """The outcome of one pass.

    Attributes:
        modified: whether it changed the model.
        sites: one row per site it looked at.
        notes: clauses on what happened otherwise than asked.
        moved_outputs: outputs that hold something else now because the recipe asked for it, such
            as a key-value cache whose channels are scaled or rotated: they are only ever fed back,
            and the promise is not about them.
    """

    modified: bool
    sites: tuple[SiteReport, ...] = ()
    notes: tuple[str, ...] = ()
    moved_outputs: tuple[str, ...] = ()

    @property
    def changed(self) -> tuple[SiteReport, ...]:
        """The sites that were changed."""
        return tuple(site for site in self.sites if site.reason is None)

    @property
    def left(self) -> tuple[SiteReport, ...]:
        """The sites that were left alone, each with its reason."""
        return tuple(site for site in self.sites if site.reason is not None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass(abc.ABC):
    """One rewrite of a model. Subclasses are frozen dataclasses in a file of their own.

    The file name is the recipe key is the snake_case of the class name. A pass checks a whole
    site before it edits it, and edits weights only through `onnxq.graph.weights`.
    """

    promise: ClassVar[Promise]
    needs_stage: ClassVar[Stage] = Stage.FLOAT
    """The earliest stage the model must have reached."""
    gives_stage: ClassVar[Stage | None] = None
    """The stage the model has reached afterwards; None leaves it as it was."""
    moves_outliers: ClassVar[bool] = False
    """Whether it changes how activations or weights are spread over channels: the runner then
    measures outliers before and after it, as it does for every pass that gives TRANSFORMED."""
    reads_activations: ClassVar[bool] = False
    """Whether it must see calibration data whatever its options are."""

    @property
    def needs_samples(self) -> bool:
        """Whether it must see calibration data."""
        return self.reads_activations

    @property
    def extra_arrays(self) -> tuple[str, ...]:
        """Names of arrays that it takes from the samples besides the inputs of the model."""
        return ()

    @classmethod
    def key(cls) -> str:
        """The recipe key: the class name in snake_case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    def requires(self, model: ir.Model) -> None:  # noqa: B027 - most passes take any model
        """Raise `UnsupportedGraph` when the model cannot be worked on; change nothing."""

    @abc.abstractmethod
    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Rewrite ``model`` in place and report every site looked at."""

    def options(self) -> dict[str, Any]:
        """The configuration as plain values, as a recipe row would write it."""
        return dataclasses.asdict(self)
