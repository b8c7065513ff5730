"""Speech at 16 kHz as arrays: the clips of the zoo's ``speech`` entry, and noise."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from onnxq.errors import ZooError
from onnxq.models.zoo import fetch

__all__ = ["RATE", "librivox", "noise", "other_speech", "read_wave"]

RATE = 16_000
"""Samples per second of every clip."""

_FULL_SCALE = 32768.0


def read_wave(path: Path) -> np.ndarray:
    """Read a RIFF file of 16-bit mono PCM at 16 kHz.

    Returns:
        float32 [samples] in [-1, 1).

    Raises:
        ZooError: another rate, width or number of channels, or not a RIFF file.
    """
    try:
        with wave.open(str(path), "rb") as clip:
            layout = clip.getframerate(), clip.getsampwidth(), clip.getnchannels()
            data = clip.readframes(clip.getnframes())
    except (wave.Error, EOFError) as error:
        raise ZooError(f"{path.name} is not a WAV file that can be read: {error}.") from error
    if layout != (RATE, 2, 1):
        raise ZooError(
            f"{path.name} has {layout[0]} Hz, {8 * layout[1]} bits and {layout[2]} channels, and "
            f"{RATE} Hz, 16 bits and one channel are needed: convert it first."
        )
    return _from_pcm(data)


def _from_pcm(data: bytes) -> np.ndarray:
    samples = np.frombuffer(data, "<i2").astype(np.float32)
    samples /= _FULL_SCALE
    return samples


def librivox() -> list[tuple[np.ndarray, str]]:
    """The five LibriVox clips, each with its transcript: 71 words of one reader, for evaluation."""
    folder = fetch("speech") / "librivox"
    return [
        (read_wave(path), path.with_suffix(".txt").read_text("utf-8").strip())
        for path in sorted(folder.glob("*.wav"))
    ]


def other_speech() -> list[np.ndarray]:
    """Ten more clips by other speakers (card names, numbers, commands), for calibration."""
    folder = fetch("speech")
    waves = [read_wave(path) for name in ("cards", "forever") for path in _sorted(folder / name)]
    return waves + [_from_pcm(path.read_bytes()) for path in _sorted(folder / "raw")]


def _sorted(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in {".wav", ".raw"})


def noise(seconds: float, *, seed: int, level: float = 0.05) -> np.ndarray:
    """White noise N(0, level²): float32 [samples]."""
    generator = np.random.default_rng(seed)
    return (level * generator.standard_normal(round(seconds * RATE))).astype(np.float32)
