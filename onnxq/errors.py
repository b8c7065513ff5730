"""Every error that onnxq raises on purpose.

A message says three things: what happened, where (node and tensor name), and what to do next.
This module imports nothing of onnxq, so every room may raise from it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ArtifactError",
    "BrokenPromise",
    "BudgetError",
    "CalibrationError",
    "ExportError",
    "FormatError",
    "MissingDependency",
    "MissingProgram",
    "ModelLoadError",
    "ModelSaveError",
    "OnnxqError",
    "RecipeError",
    "UnsupportedGraph",
    "UsageError",
    "WorkFolderError",
    "WorkerError",
    "ZooError",
    "nearest_word",
]


class OnnxqError(Exception):
    """Base of all errors raised on purpose; the CLI prints it and exits with 1."""


class UsageError(OnnxqError):
    """Arguments that do not go together, or one that is missing; the CLI exits with 2."""


class ModelLoadError(OnnxqError):
    """The input is not a model that can be read: truncated, not ONNX, data missing or unsafe."""


class ModelSaveError(OnnxqError):
    """The output could not be written; whatever was there before is untouched."""


class UnsupportedGraph(OnnxqError):
    """The model is readable, but a pass cannot work on it as it stands."""


class FormatError(OnnxqError):
    """A format was misspelt, or a tensor cannot be stored in it (NaN, inf, empty, wrong shape)."""


class CalibrationError(OnnxqError):
    """Calibration data do not fit the model: names, shapes, dtypes, no samples, NaN."""


class RecipeError(OnnxqError):
    """A recipe names an unknown pass or key, or a value of the wrong type."""


class BrokenPromise(OnnxqError):
    """A pass changed the model's outputs more than it promised."""


class BudgetError(OnnxqError):
    """No choice of formats meets a budget."""


class ExportError(OnnxqError):
    """A model could not be exported, or the export does not match its source framework."""


class ArtifactError(OnnxqError):
    """The written artifact failed its verification."""


class ZooError(OnnxqError):
    """A packaged model or data set could not be fetched, or is not the pinned one."""


class WorkFolderError(OnnxqError):
    """Finished pieces of work cannot be kept: no space, no permission, or another run is there."""


class WorkerError(OnnxqError):
    """A piece of work failed, or lost its worker again and again."""


class MissingDependency(OnnxqError):
    """An optional package is needed for this step; the message names the extra to install."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        """Name the package, the extra of onnxq that brings it, and what it is needed for."""
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'onnxq[{extra}]'"
        )


class MissingProgram(MissingDependency):
    """A program that is no Python package is needed for this step."""

    def __init__(self, program: str, package: str, purpose: str) -> None:
        """Name the program, the package of Debian that has it, and what it is needed for."""
        OnnxqError.__init__(
            self,
            f"{purpose} needs the program {program!r}, which was not found. Install it (Debian or "
            f"Ubuntu: apt-get install {package}).",
        )


def nearest_word(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant; None when none is like it."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return found[0] if found else None
