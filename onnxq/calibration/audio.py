"""Samples from a folder of sound files: whole waveforms, or windows of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from onnxq.calibration.fields import from_table, read_table
from onnxq.calibration.samples import Sample, Samples
from onnxq.errors import CalibrationError, MissingDependency
from onnxq.runtime import TensorSpec

__all__ = ["AUDIO_SUFFIXES", "AudioSpec", "audio_folder", "audio_spec"]

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au"})

_RATE_NAMES = ("sr", "sample_rate", "sampling_rate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioSpec:
    """How a sound file becomes the input of a model.

    Attributes:
        rate: samples per second; files of another rate are resampled.
        window: samples in one model input; None takes it from the model when that is static, and
            whole files otherwise.
        hop: samples from one window to the next; None means no overlap.
        input: name of the input that takes the waveform; None finds the only float input that is
            no recurrent state.
    """

    rate: int = 16000
    window: int | None = None
    hop: int | None = None
    input: str | None = None

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        for field in ("rate", "window", "hop"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise CalibrationError(f"An audio spec has {field} = {value}: it must be positive.")


def audio_spec(path: Path) -> AudioSpec:
    """Read a spec from TOML or JSON.

    Raises:
        CalibrationError: the file cannot be read, or has unknown keys.
    """
    return from_table(AudioSpec, read_table(path), path.name)


def audio_folder(folder: Path, spec: AudioSpec, inputs: Sequence[TensorSpec]) -> Samples:
    """One sample per window of each file, in the order of the file names; channels are averaged.

    Inputs besides the waveform: a sampling rate is given as such, a recurrent state (any other
    float input of static shape beyond its batch) as zeros.

    Raises:
        CalibrationError: an input cannot be made from sound; while iterating, a damaged file.
        MissingDependency: soundfile is not installed.
    """
    try:
        import soundfile
    except ImportError as error:
        raise MissingDependency("soundfile", "media", "Reading sound files") from error
    target = _target(spec, inputs)
    others = {item.name: _other(item, spec) for item in inputs if item is not target}
    window = spec.window or (target.shape[-1] if isinstance(target.shape[-1], int) else None)
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in AUDIO_SUFFIXES)

    def read() -> Iterator[Sample]:
        for file in files:
            try:
                sound, rate = soundfile.read(file, dtype="float32", always_2d=True)
            except (OSError, RuntimeError) as error:
                raise CalibrationError(
                    f"{file.name!r} cannot be read as sound ({error}): take it out of the folder."
                ) from error
            wave = _resampled(sound.mean(axis=1), rate, spec.rate)
            for piece in _windows(wave, window, spec.hop):
                shaped = piece.reshape((1,) * (len(target.shape) - 1) + (-1,))
                yield {target.name: shaped.astype(target.dtype), **others}

    return Samples(read, label=f"folder {folder.name!r}")


def _target(spec: AudioSpec, inputs: Sequence[TensorSpec]) -> TensorSpec:
    """The input that takes the waveform."""
    floats = [item for item in inputs if item.dtype.kind == "f" and item.shape]
    waves = [item for item in floats if "state" not in item.name and item.name not in ("h", "c")]
    named = [item for item in floats if item.name == spec.input]
    chosen = named if spec.input is not None else waves
    if not floats:
        raise CalibrationError("The model has no float input, so none can take a waveform.")
    if len(chosen) != 1:
        raise CalibrationError(
            "The audio spec does not tell which input takes the waveform: set input to one of "
            f"{', '.join(repr(item.name) for item in floats)}."
        )
    return chosen[0]


def _other(item: TensorSpec, spec: AudioSpec) -> np.ndarray:
    if item.name in _RATE_NAMES:
        return np.full(
            tuple(d if isinstance(d, int) else 1 for d in item.shape), spec.rate, item.dtype
        )
    inner = item.shape[1:] if item.shape and not isinstance(item.shape[0], int) else item.shape
    dynamic = [dim for dim in inner if not isinstance(dim, int)]
    if item.dtype.kind != "f" or len(dynamic) > 1:
        raise CalibrationError(
            f"Input {item.name!r} of shape {list(item.shape)} cannot be made from sound: only a "
            "waveform, a sampling rate and recurrent states can. Give the samples as a Python "
            "iterable or a folder of .npz files."
        )
    return np.zeros(tuple(d if isinstance(d, int) else 1 for d in item.shape), item.dtype)


def _windows(wave: np.ndarray, window: int | None, hop: int | None) -> Iterator[np.ndarray]:
    """Windows of ``window`` samples; a file shorter than one is padded with silence."""
    if window is None:
        yield wave
        return
    if len(wave) < window:
        wave = np.pad(wave, (0, window - len(wave)))
    for begin in range(0, len(wave) - window + 1, hop or window):
        yield wave[begin : begin + window]


def _resampled(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Band-limited resampling by cutting or extending the spectrum of the whole file."""
    if rate == wanted or not len(wave):
        return wave
    length = max(round(len(wave) * wanted / rate), 1)
    spectrum = np.fft.rfft(wave)
    kept = np.zeros(length // 2 + 1, spectrum.dtype)
    shared = min(len(kept), len(spectrum))
    kept[:shared] = spectrum[:shared]
    return np.asarray(np.fft.irfft(kept, length) * (length / len(wave)), np.float32)
