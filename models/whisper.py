"""Whisper tiny.en: speech to text with an encoder and a decoder with key/value caches."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from onnxq.errors import MissingDependency
from onnxq.evaluate.speech import ErrorCount, word_errors
from onnxq.models.audio import librivox, noise, other_speech
from onnxq.models.log_mel import log_mel
from onnxq.models.task import Feeds, Metrics, Models, Task
from onnxq.models.zoo import fetch
from onnxq.runtime import Session, open_session

__all__ = ["WhisperTiny"]

_START, _NO_TIMESTAMPS, _END = 50257, 50362, 50256
_HEADS, _HEAD_SIZE = 6, 64


@dataclasses.dataclass(frozen=True)
class WhisperTiny(Task):
    """Transcription; judged by word error rate on five LibriVox clips of 71 words.

    Greedy decoding from "start of transcript, no timestamps", with the model's own lists of
    suppressed tokens; transcripts are compared as `onnxq.evaluate.speech.spoken_words`.

    Attributes:
        longest: most tokens in a transcript.
        stride: every n-th decoding step of a calibration clip is a sample, and its first.
    """

    name: ClassVar[str] = "whisper-tiny-en"
    title: ClassVar[str] = "Whisper tiny.en (encoder, decoder with caches)"
    primary: ClassVar[str] = "word_error_rate"
    higher_is_better: ClassVar[bool] = False
    tolerance: ClassVar[float | None] = 1 / 71

    longest: int = 64
    stride: int = 2

    def build(self, folder: Path) -> dict[str, Path]:
        """Convert the CTranslate2 weights to a transformers checkpoint, and export that."""
        from onnxq.export.from_hf import from_hf
        from onnxq.export.hf_folder import quiet_transformers

        source = fetch("whisper-tiny-en")
        with tempfile.TemporaryDirectory(prefix="onnxq-whisper-") as checkpoint:
            try:
                from onnxq.models.families.whisper import write_checkpoint
            except ImportError as error:
                raise MissingDependency("transformers", "hf", "Converting Whisper") from error
            with quiet_transformers():
                write_checkpoint(source, Path(checkpoint))
            exported = from_hf(
                checkpoint, folder, task="automatic-speech-recognition", overwrite=True
            )
        return exported.models

    def calibration(self, models: Models) -> dict[str, list[Feeds]]:
        """Ten clips by other speakers and one of noise; decoder steps with their true caches."""
        return self._feeds(models, [*other_speech(), noise(3.0, seed=1)], self.stride)

    def evaluate(self, models: Models, *, source: Models | None = None) -> Metrics:
        """Word errors against the transcripts; ``source`` is not needed."""
        total, texts = ErrorCount(0, 0), []
        with open_session(models["encoder"]) as encoder, open_session(models["decoder"]) as decoder:
            for clip, transcript in librivox():
                tokens = [token for _, token in self._decode(encoder, decoder, log_mel(clip))]
                texts.append(_tokenizer().decode(tokens).strip())
                total += word_errors(transcript, texts[-1])
        return {
            "word_error_rate": total.rate,
            "word_errors": float(total.errors),
            "words": float(total.length),
            "text": "\n".join(texts),
        }

    def held_back(self, models: Models) -> dict[str, list[Feeds]]:
        """Two LibriVox clips, and two steps of decoding each."""
        feeds = self._feeds(models, [clip for clip, _ in librivox()[1:3]], 5)
        return {"encoder": feeds["encoder"], "decoder": feeds["decoder"][::2][:4]}

    def _feeds(
        self, models: Models, clips: list[np.ndarray], stride: int
    ) -> dict[str, list[Feeds]]:
        encoder_feeds, decoder_feeds = [], []
        with open_session(models["encoder"]) as encoder, open_session(models["decoder"]) as decoder:
            for clip in clips:
                features = log_mel(clip)
                encoder_feeds.append({"audio_features": features})
                steps = [feeds for feeds, _ in self._decode(encoder, decoder, features)]
                decoder_feeds.extend(steps[::stride])
        return {"encoder": encoder_feeds, "decoder": decoder_feeds}

    def _decode(
        self, encoder: Session, decoder: Session, features: np.ndarray
    ) -> Iterator[tuple[Feeds, int]]:
        """Greedy decoding: the feeds of each step, and the token it gives; the end is not given."""
        past = _pasts(encoder.run({"audio_features": features}))
        empty = np.zeros((1, _HEADS, 0, _HEAD_SIZE), np.float32)
        always, at_first = _suppressed()
        ids = np.array([[_START, _NO_TIMESTAMPS]])
        for step in range(self.longest):
            feeds = {
                spec.name: ids.astype(spec.dtype)
                if spec.name == "input_ids"
                else past.get(spec.name, empty)
                for spec in decoder.inputs
            }
            results = decoder.run(feeds)
            scores = results["logits"][0, -1].astype(np.float32)
            scores[always] = -np.inf
            if step == 0:
                scores[at_first] = -np.inf
            token = int(scores.argmax())
            if token == _END:
                return
            yield feeds, token
            past.update(_pasts(results))
            ids = np.array([[token]])


def _pasts(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What one run calls present is what the next one calls past."""
    return {
        name.replace("present", "past", 1): array
        for name, array in results.items()
        if name.startswith("present")
    }


@functools.cache
def _suppressed() -> tuple[list[int], list[int]]:
    config = json.loads((fetch("whisper-tiny-en") / "config.json").read_text("utf-8"))
    return config["suppress_ids"], config["suppress_ids_begin"]


@functools.cache
def _tokenizer() -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependency("tokenizers", "hf", "Reading Whisper's tokens") from error
    return Tokenizer.from_file(str(fetch("whisper-tiny-en") / "tokenizer.json"))
