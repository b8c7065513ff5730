"""What an export gives back, and how its folder is written: whole, or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxq.errors import ExportError

__all__ = ["Exported", "fresh_folder", "refuse_occupied"]


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

    Args:
        out: the folder to write. It may exist when it is empty.
        overwrite: replace a folder that holds an ONNX model. A folder that holds other things and
            no model is never replaced.

    Raises:
        ExportError: ``out`` exists and may not be replaced; nothing is touched then.
    """
    out = Path(out)
    refuse_occupied(out, overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise ExportError(
            f"The output folder {str(out)!r} cannot be made: {error.strerror or error}. Give a "
            "path that you may write to."
        ) from error
    try:
        fresh = staging / out.name
        fresh.mkdir()
        yield fresh
        if out.exists():
            refuse_occupied(out, overwrite)
            out.rename(staging / "replaced")
        try:
            fresh.rename(out)
        except OSError:
            if (staging / "replaced").exists():
                (staging / "replaced").rename(out)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_occupied(out: str | Path, overwrite: bool) -> None:
    """Raise `ExportError` when ``out`` exists and `fresh_folder` would not replace it."""
    out = Path(out)
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
    if not any(out.glob("*.onnx")):
        raise ExportError(
            f"The output folder {str(out)!r} is not empty and holds no ONNX model, so it is not "
            "replaced even when asked to overwrite: give another folder."
        )
