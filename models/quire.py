"""Quire's grammar tagger: a DistilBERT that its authors already quantized (static int8 QDQ).

It is in the zoo so that "already quantized" is recognised on a real model.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from onnxq.errors import MissingDependency
from onnxq.evaluate.classification import top1, top1_agreement
from onnxq.models.task import Feeds, Metrics, Models, Task
from onnxq.models.zoo import fetch
from onnxq.runtime import open_session

__all__ = ["QuireTagger"]

_KEEP = 0
"""Index of ``$KEEP``, the tag of a token that needs no correction."""


@dataclasses.dataclass(frozen=True)
class QuireTagger(Task):
    """Correction tags of words; judged by agreement with the source on film-review sentences.

    Attributes:
        sentences: of the 200 in evaluation; calibration takes as many from the other end.
    """

    name: ClassVar[str] = "quire-tagger"
    title: ClassVar[str] = "Quire grammar tagger (already int8 QDQ)"
    primary: ClassVar[str] = "top1_agreement"
    tolerance: ClassVar[float | None] = 0.0

    sentences: int = 40

    def build(self, folder: Path) -> dict[str, Path]:
        """Copy the packaged ONNX file."""
        folder.mkdir(parents=True, exist_ok=True)
        source = fetch("quire-tagger") / "tagger.onnx"
        return {"model": Path(shutil.copy(source, folder / "model.onnx"))}

    def calibration(self, models: Models) -> dict[str, list[Feeds]]:
        """The last sentences of the file."""
        return {"model": [_encode(text) for text in _reviews()[-self.sentences :]]}

    def evaluate(self, models: Models, *, source: Models | None = None) -> Metrics:
        """Agreement of the tags, and the share of tokens that the model would leave alone."""
        logits = self._logits(models)
        reference = logits if source is None else self._logits(source)
        return {
            "top1_agreement": top1_agreement(logits, reference),
            "kept": float(np.mean(top1(logits) == _KEEP)),
            "tokens": float(len(logits)),
        }

    def held_back(self, models: Models) -> dict[str, list[Feeds]]:
        """Four sentences of the evaluation."""
        return {"model": [_encode(text) for text in _reviews()[:4]]}

    def _logits(self, models: Models) -> np.ndarray:
        """Scores of every token, [tokens, tags]."""
        with open_session(models["model"]) as session:
            return np.concatenate(
                [
                    session.run(_encode(text), ["logits"])["logits"][0]
                    for text in _reviews()[: self.sentences]
                ]
            )


def _reviews() -> list[str]:
    text = (fetch("text") / "pang_lee_polarity.cor").read_text("cp1252")
    return [line.split(" ", 1)[1].strip() for line in text.splitlines() if " " in line]


def _encode(text: str) -> Feeds:
    tokens = _tokenizer().encode(text)
    ids = np.array([tokens.ids], np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@functools.cache
def _tokenizer() -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependency("tokenizers", "hf", "Encoding text for the tagger") from error
    tokenizer = Tokenizer.from_file(str(fetch("quire-tagger") / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenizer
