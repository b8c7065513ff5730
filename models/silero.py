"""Silero VAD: the probability of speech for every 32 ms, with a recurrent state.

The ONNX file is taken as its authors wrote it (If bodies, LSTM, weights in Constant nodes). Each
run takes 512 new samples behind the last 64 of the frame before, and the state the frame before
left; the reference implementation does the same.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from onnxq.evaluate.classification import decision_agreement
from onnxq.models.audio import RATE, librivox, noise, other_speech
from onnxq.models.task import Feeds, Metrics, Models, Task
from onnxq.models.zoo import fetch
from onnxq.runtime import Session, open_session

__all__ = ["SileroVad"]

_FRAME = 512
_CONTEXT = 64
_STATE = (2, 1, 128)


@dataclasses.dataclass(frozen=True)
class SileroVad(Task):
    """Voice activity detection; judged by decisions at probability 0.5 that equal the source's.

    Attributes:
        seconds_of_noise: length of the noise in evaluation, in seconds.
        stride: every n-th frame of the calibration clips is a sample.
    """

    name: ClassVar[str] = "silero-vad"
    title: ClassVar[str] = "Silero VAD 16 kHz (LSTM in If bodies)"
    primary: ClassVar[str] = "decision_agreement"
    tolerance: ClassVar[float | None] = 0.0

    seconds_of_noise: float = 5.0
    stride: int = 4

    def build(self, folder: Path) -> dict[str, Path]:
        """Copy the packaged ONNX file."""
        folder.mkdir(parents=True, exist_ok=True)
        return {"model": Path(shutil.copy(fetch("silero-vad") / "vad.onnx", folder / "model.onnx"))}

    def calibration(self, models: Models) -> dict[str, list[Feeds]]:
        """Every ``stride``-th frame of ten clips and of a second of noise, with its true state."""
        with open_session(models["model"], threads=1) as session:
            clips = [*other_speech(), noise(1.0, seed=1)]
            frames = [feeds for clip in clips for feeds, _ in _walk(session, clip)]
        return {"model": frames[:: self.stride]}

    def evaluate(self, models: Models, *, source: Models | None = None) -> Metrics:
        """Mean probabilities on LibriVox speech and on noise, and agreement of the decisions."""
        speech, quiet = self._probabilities(models)
        probabilities = np.concatenate([speech, quiet])
        reference = probabilities
        if source is not None:
            reference = np.concatenate(self._probabilities(source))
        return {
            "decision_agreement": decision_agreement(probabilities, reference),
            "largest_difference": float(np.abs(probabilities - reference).max()),
            "speech_probability": float(speech.mean()),
            "noise_probability": float(quiet.mean()),
            "frames": float(len(probabilities)),
        }

    def held_back(self, models: Models) -> dict[str, list[Feeds]]:
        """Four frames from the middle of a LibriVox clip, with their true state."""
        clip = librivox()[0][0][: RATE * 2]
        with open_session(models["model"], threads=1) as session:
            frames = [feeds for feeds, _ in _walk(session, clip)]
        return {"model": frames[20:60:10]}

    def _probabilities(self, models: Models) -> tuple[np.ndarray, np.ndarray]:
        with open_session(models["model"], threads=1) as session:
            speech = [value for clip, _ in librivox() for _, value in _walk(session, clip)]
            hiss = noise(self.seconds_of_noise, seed=2)
            return np.array(speech), np.array([value for _, value in _walk(session, hiss)])


def _walk(session: Session, clip: np.ndarray) -> Iterator[tuple[Feeds, float]]:
    """Run over a clip, padded with silence to whole frames; yield feeds and probability."""
    padded = np.pad(clip, (_CONTEXT, -len(clip) % _FRAME))
    state = np.zeros(_STATE, np.float32)
    for start in range(0, len(padded) - _CONTEXT, _FRAME):
        piece = padded[None, start : start + _CONTEXT + _FRAME]
        feeds = {"input": piece, "state": state, "sr": np.array(RATE, np.int64)}
        results = session.run(feeds, ["output", "stateN"])
        state = results["stateN"]
        yield feeds, float(results["output"][0, 0])
