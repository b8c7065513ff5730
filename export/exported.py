"""What an export gives back, and how its folder is written: whole, or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxq.errors import ExportError, ModelSaveError
from onnxq.graph.lock import output_lock

__all__ = ["Exported", "fresh_folder", "refuse_occupied"]

_STAGED = ".partial"
_REPLACED = "replaced"
_OURS = ("*.onnx", "onnxq-build.json")
"""What a folder holds that may be replaced: a model, or the account of a build without one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported model in its folder, checked against the framework it came from.

    Attributes:
        folder: where everything lies.
        models: the ONNX files by role: ``model``, or ``encoder`` and ``decoder``.
        task: e.g. ``text-generation``, ``feature-extraction``.
        source: what was exported, and what it was compared with.
        largest_error: largest relative error max|a - b| / max|b| over all compared outputs;
            None when there was nothing to compare with (an ONNX file taken as it is).
        bound: what the error had to stay under; None likewise.
        errors: the largest relative error of each comparison, by its name.
        notes: sentences worth showing to the user.
    """

    folder: Path
    models: dict[str, Path]
    task: str
    source: str
    largest_error: float | None
    bound: float | None
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def fresh_folder(out: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``out`` when the block ends without an exception.

    What a killed run left beside ``out`` is cleaned up first, see `refuse_occupied`. One run
    writes a folder at a time.

    Args:
        out: the folder to write. It may exist when it is empty.
        overwrite: replace a folder that holds an ONNX model. A folder that holds other things and
            no model is never replaced.

    Raises:
        ExportError: ``out`` exists and may not be replaced; nothing is touched then.
        ModelSaveError: another run is writing it.
    """
    out = Path(out).absolute()
    refuse_occupied(out, overwrite)
    with contextlib.ExitStack() as stack:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(output_lock(out))
            staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_STAGED, dir=out.parent))
        except OSError as error:
            raise ExportError(
                f"The output folder {str(out)!r} cannot be made: {error.strerror or error}. Give a "
                "path that you may write to."
            ) from error
        stack.callback(shutil.rmtree, staging, ignore_errors=True)
        fresh = staging / out.name
        fresh.mkdir()
        yield fresh
        if out.exists():
            refuse_occupied(out, overwrite)
            out.rename(staging / _REPLACED)
        try:
            fresh.rename(out)
        except OSError:
            if (staging / _REPLACED).exists():
                (staging / _REPLACED).rename(out)
            raise


def _clean_up(out: Path) -> None:
    """Finish or remove what killed runs left beside ``out``, unless a run is writing it now.

    A run that was killed between its two renames has moved the old folder away, and the new one is
    whole: it is put in place. In every other state ``out`` is what it should be.
    """
    left = sorted(out.parent.glob(f".{glob.escape(out.name)}.*{_STAGED}"))
    if not left:
        return
    with contextlib.suppress(ModelSaveError), output_lock(out):
        for staging in left:
            fresh = staging / out.name
            if (staging / _REPLACED).exists() and fresh.exists() and not out.exists():
                fresh.rename(out)
            shutil.rmtree(staging, ignore_errors=True)


def refuse_occupied(out: str | Path, overwrite: bool) -> None:
    """Raise `ExportError` when ``out`` exists and `fresh_folder` would not replace it.

    Before that, what killed runs left beside it is cleaned up.
    """
    out = Path(out).absolute()
    _clean_up(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"The output {str(out)!r} is a file: give the path of a folder.")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise ExportError(
            f"The output folder {str(out)!r} exists and is not empty: give another folder, or ask "
            "to overwrite it."
        )
    if not any(any(out.glob(pattern)) for pattern in _OURS):
        raise ExportError(
            f"The output folder {str(out)!r} is not empty and holds no ONNX model, so it is not "
            "replaced even when asked to overwrite: give another folder."
        )
