"""What every deployment target offers: what it will do with each site, and a folder to deploy.

`check` reads an artifact and says, site by site, what the target's runtime will do with it, by the
name of a rule; `build` writes a folder that runs there. The targets are in `onnxq.export.targets`.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.errors import UsageError

__all__ = ["BuiltTarget", "DeploymentTarget", "Execution", "Observed", "SiteVerdict", "Verdicts"]


class Execution(enum.Enum):
    """What a runtime does with one site."""

    INTEGER = "integer kernel"
    LOW_BIT = "low-bit kernel"
    """Weights stay in few bits up to the kernel, activations are float or rounded inside."""
    DEQUANTIZED = "dequantized, then float"
    DECODED = "decoded once, then float"
    """Stored in few bits, decoded when the model is loaded."""
    FLOAT = "float"
    """It is not quantized, and runs as it is."""
    ELSEWHERE = "another provider"
    FUNCTION = "function body"
    UNSUPPORTED = "unsupported"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteVerdict:
    """What the target will do with one site.

    Attributes:
        site: name of the site, as `onnxq.graph.find_sites` gives it, or of another quantized node.
        execution: what runs.
        rule: name of the rule that decided, the same in documentation and tests.
        reason: what was found and what to do about it; empty where all is as wished.
        kernel: the operator that the runtime runs, when it is known.
    """

    site: str
    execution: Execution
    rule: str
    reason: str = ""
    kernel: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {**dataclasses.asdict(self), "execution": self.execution.value}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observed:
    """What the runtime did, when it was asked (``onnxq check --run``).

    Attributes:
        kernels: the operators that ran for each site, by its name.
        differences: where that is not what the rules said, a sentence each; empty when they agree.
        note: how they were seen.
    """

    kernels: Mapping[str, str]
    differences: Sequence[str] = ()
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "kernels": dict(self.kernels),
            "differences": list(self.differences),
            "note": self.note,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdicts:
    """The account of `onnxq check`.

    Attributes:
        target: name of the target.
        sites: one verdict for each site, in graph order.
        wasted: nodes that quantize or dequantize and are not fused: they cost time and gain none.
        notes: about the model as a whole: operators, opset, shapes.
        observed: what the runtime did; None when it was not asked.
    """

    target: str
    sites: Sequence[SiteVerdict]
    wasted: Sequence[SiteVerdict] = ()
    notes: Sequence[str] = ()
    observed: Observed | None = None

    @property
    def unclean(self) -> tuple[SiteVerdict, ...]:
        """The sites that do not run as they were meant or not at all, and the wasted nodes."""
        bad = (Execution.DEQUANTIZED, Execution.UNSUPPORTED, Execution.ELSEWHERE)
        return (*(site for site in self.sites if site.execution in bad), *self.wasted)

    @property
    def is_clean(self) -> bool:
        """Whether every quantized site runs as it was meant, and nothing is unsupported."""
        return not self.unclean

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "target": self.target,
            "is_clean": self.is_clean,
            "sites": [site.to_dict() for site in self.sites],
            "wasted": [node.to_dict() for node in self.wasted],
            "notes": list(self.notes),
            "observed": None if self.observed is None else self.observed.to_dict(),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltTarget:
    """What `onnxq build` wrote.

    Attributes:
        target: name of the target.
        folder: what to deploy; ``onnxq-build.json`` in it is this account.
        files: names of its files with their bytes.
        verified: how it was verified, or why it could not be: ``{"engine": "built"}``,
            ``{"outputs": ...}``.
        verdicts: of `DeploymentTarget.check`.
    """

    target: str
    folder: Path
    files: Mapping[str, int]
    verified: Mapping[str, Any]
    verdicts: Verdicts

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "target": self.target,
            "folder": str(self.folder),
            "files": dict(self.files),
            "verified": dict(self.verified),
            "check": self.verdicts.to_dict(),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeploymentTarget(abc.ABC):
    """One place where models run; a frozen dataclass whose fields are its options."""

    name: ClassVar[str]
    """As ``--target`` gives it."""
    title: ClassVar[str]
    """For tables: the runtime and the hardware."""

    @abc.abstractmethod
    def check(self, model: ir.Model) -> Verdicts:
        """What the target will do with each site of the model; nothing is run on it.

        Raises:
            MissingDependency: a package that the check asks is not installed.
        """

    def observe(
        self, model: ir.Model, verdicts: Verdicts, sample: Mapping[str, np.ndarray] | None = None
    ) -> Observed:
        """What the runtime really does with each site, found by opening and running the model.

        Args:
            model: the model that was checked.
            verdicts: what `check` said of it.
            sample: inputs by name to run it on; random ones when None.

        Raises:
            UsageError: the runtime cannot be asked from here.
        """
        raise UsageError(f"Target {self.name!r} cannot be asked what it runs: check without --run.")

    @abc.abstractmethod
    def build(self, source: Path, staging: Path) -> Mapping[str, Any]:
        """Write what is deployed into a fresh folder and verify it.

        Args:
            source: an artifact or any model: its folder, or its ``.onnx`` file.
            staging: folder to write into; put in place by the caller once this returns.

        Returns:
            How it was verified.

        Raises:
            OnnxqError: the target cannot run the model: what, where, what to do.
        """

    def run(
        self, folder: Path, samples: Sequence[Mapping[str, np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        """Outputs of a built folder, by name, for each sample: computed by the target's runtime.

        Args:
            folder: what `build` wrote.
            samples: inputs by name.

        Raises:
            UsageError: the target's runtime cannot be run from here.
            OnnxqError: the runtime refuses the model or fails.
        """
        raise UsageError(f"target {self.name!r} is not run from here")
