"""Find out what calibration data are and open them for a model."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq.calibration.arrays import array_file, npz_folder
from onnxq.calibration.audio import AUDIO_SUFFIXES, AudioSpec, audio_folder, audio_spec
from onnxq.calibration.checks import checked_samples, input_specs
from onnxq.calibration.images import IMAGE_SUFFIXES, ImageSpec, image_folder, image_spec
from onnxq.calibration.samples import Samples
from onnxq.calibration.text import text_samples
from onnxq.errors import CalibrationError
from onnxq.runtime import TensorSpec, open_session
from onnxq.runtime.decoder import cache_head_size, is_cache

__all__ = ["open_data"]

_SPEC_FILES = ("preprocess.toml", "preprocess.json", "preprocessor_config.json")


def open_data(
    source: str | Path | Iterable[Any],
    model: ir.Model | Sequence[TensorSpec],
    *,
    tokenizer: str | Path | None = None,
    preprocess: str | Path | ImageSpec | AudioSpec | None = None,
    length: int = 128,
    limit: int | None = None,
    batch: int = 1,
    extras: Collection[str] = (),
) -> Samples:
    """Samples for a model, checked against its inputs as they are read.

    Args:
        source: a folder of ``.npz`` files, of images or of sound files; a ``.npz`` or ``.npy``
            file; a text file; or a Python iterable of dicts of arrays (a generator is written to a
            temporary folder).
        model: the model that will be fed, or the specs of its inputs.
        tokenizer: for text: a ``tokenizer.json`` or its folder; looked for beside the text too.
        preprocess: for images and sound: a spec or a TOML/JSON file with one; a folder may hold
            one as ``preprocess.toml``, ``preprocess.json`` or ``preprocessor_config.json``.
        length: for text: tokens in a sample.
        limit: use no more than this many samples: the first ones; of a long text for a decoder,
            windows spread over all of it.
        batch: join this many samples along their first axis.
        extras: names of arrays that samples may carry besides the inputs, such as token weights.

    Raises:
        CalibrationError: the data are not there, of no known kind, or do not fit the model (names,
            shapes, dtypes, NaN, none at all; found while iterating).
        MissingDependency: a package that reads this kind of data is not installed.
    """
    specs = input_specs(model) if isinstance(model, ir.Model) else tuple(model)
    if isinstance(source, (str, Path)) and isinstance(model, ir.Model):
        specs = _with_head_size(specs, model)
    if isinstance(source, (str, Path)):
        samples = _open(Path(source), specs, tokenizer, preprocess, length, limit)
        samples = samples if limit is None else samples.take(limit)
    else:
        samples = Samples.of(source, limit=limit)
    checked = checked_samples(samples, specs, extras=extras)
    return checked if batch == 1 else checked_samples(checked.batched(batch), specs, extras=extras)


def _with_head_size(specs: tuple[TensorSpec, ...], model: ir.Model) -> tuple[TensorSpec, ...]:
    """Caches whose head size the model leaves open get the one that it runs with."""
    caches = [spec for spec in specs if is_cache(spec)]
    if all(isinstance(spec.shape[3], int) for spec in caches):
        return specs
    with open_session(model) as session:
        size = cache_head_size(session)
    return tuple(
        dataclasses.replace(spec, shape=(*spec.shape[:3], size)) if is_cache(spec) else spec
        for spec in specs
    )


def _open(
    path: Path,
    specs: Sequence[TensorSpec],
    tokenizer: str | Path | None,
    preprocess: str | Path | ImageSpec | AudioSpec | None,
    length: int,
    limit: int | None,
) -> Samples:
    if not path.exists():
        raise CalibrationError(f"There are no calibration data at {str(path)!r}: check the path.")
    if path.is_dir():
        return _open_folder(path, specs, preprocess)
    if path.suffix in (".npz", ".npy"):
        return array_file(path, specs)
    beside = path.parent / "tokenizer.json"
    if tokenizer is None and not beside.exists():
        raise CalibrationError(
            f"{path.name!r} is taken for a text, and text needs a tokenizer: give the path of the "
            "model's tokenizer.json."
        )
    return text_samples(path, Path(tokenizer or beside), specs, length=length, limit=limit)


def _open_folder(
    path: Path,
    specs: Sequence[TensorSpec],
    preprocess: str | Path | ImageSpec | AudioSpec | None,
) -> Samples:
    suffixes = Counter(file.suffix.lower() for file in path.iterdir())
    images = sum(suffixes[suffix] for suffix in IMAGE_SUFFIXES)
    sounds = sum(suffixes[suffix] for suffix in AUDIO_SUFFIXES)
    most = max(suffixes[".npz"], images, sounds)
    if most == 0:
        raise CalibrationError(
            f"Folder {path.name!r} holds no .npz files, images or sound files to calibrate with."
        )
    if suffixes[".npz"] == most:
        return npz_folder(path)
    if preprocess is None:
        preprocess = next((path / name for name in _SPEC_FILES if (path / name).exists()), None)
    if images == most:
        return image_folder(path, _image_spec(preprocess, path), specs)
    return audio_folder(path, _audio_spec(preprocess), specs)


def _image_spec(given: str | Path | ImageSpec | AudioSpec | None, folder: Path) -> ImageSpec:
    if isinstance(given, ImageSpec):
        return given
    if isinstance(given, (str, Path)):
        return image_spec(Path(given))
    raise CalibrationError(
        f"Folder {folder.name!r} holds images, and how they are resized and normalized decides the "
        "ranges: give an image spec (size, mean, std, layout), for example as a preprocess.toml "
        "in the folder."
    )


def _audio_spec(given: str | Path | ImageSpec | AudioSpec | None) -> AudioSpec:
    if isinstance(given, AudioSpec):
        return given
    if isinstance(given, (str, Path)):
        return audio_spec(Path(given))
    return AudioSpec()
