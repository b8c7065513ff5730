"""Samples from a text file and a ``tokenizer.json``, shaped as the inputs of the model ask.

A decoder (a model with a key/value cache) gets windows of consecutive tokens and an empty past.
When fewer are wanted than half of what the text has, they begin at places spread evenly over it:
neighbours are of one subject, and tell a calibration little more. An encoder gets one line of text
per sample with its special tokens, cut at the window length and, when the model's length is static,
padded to it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.calibration.samples import Sample, Samples
from onnxq.errors import CalibrationError, MissingDependency
from onnxq.runtime import TensorSpec

__all__ = ["text_samples", "tokenizer_beside"]

_PIECE = 1 << 16  # characters of text that are tokenized at a time


def text_samples(
    path: Path,
    tokenizer: Path,
    inputs: Sequence[TensorSpec],
    *,
    length: int = 128,
    limit: int | None = None,
) -> Samples:
    """Tokenized text.

    Args:
        path: a UTF-8 text file.
        tokenizer: a ``tokenizer.json`` of Hugging Face tokenizers, or the folder it is in.
        inputs: the inputs of the model; each must be one that can be made from tokens.
        length: tokens in a window (decoder), or the most tokens of a line (encoder).
        limit: how many samples are wanted at most; None takes all there are.

    Raises:
        CalibrationError: the tokenizer cannot be read, or an input cannot be made from text;
            while iterating, when the file is no UTF-8 text.
        MissingDependency: the package tokenizers is not installed.
    """
    loaded = _load_tokenizer(tokenizer)
    feeder = _Feeder(inputs)
    length = feeder.static_length or length
    is_decoder = any(_is_past(spec.name) for spec in inputs)
    pad = None if is_decoder else feeder.static_length

    def read() -> Iterator[Sample]:
        if not is_decoder:
            pieces = _lines(path, loaded, length)
        elif limit and _is_long(path, loaded, 2 * limit * length):
            pieces = _spread_windows(path, loaded, length, limit)
        else:
            pieces = _windows(path, loaded, length)
        for tokens in itertools.islice(pieces, limit):
            yield feeder.feed(tokens, pad)

    return Samples(read, label=f"text {path.name!r}")


def tokenizer_beside(model: object) -> Path | None:
    """The ``tokenizer.json`` in the folder of a model; None without one, or for no path."""
    if not isinstance(model, (str, Path)):
        return None
    path = Path(model)
    found = (path if path.is_dir() else path.parent) / "tokenizer.json"
    return found if found.is_file() else None


def _load_tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependency("tokenizers", "hf", "Reading text") from error
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more specific
        raise CalibrationError(
            f"{file.name!r} cannot be read as a tokenizer ({error}): give the tokenizer.json that "
            "belongs to the model, or the folder it is in."
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _windows(path: Path, tokenizer: Any, length: int) -> Iterator[list[int]]:
    """Consecutive windows of exactly ``length`` tokens; a shorter rest only when it is all."""
    waiting: list[int] = []
    is_first = True
    for piece in _text(path, lambda file: file.readlines(_PIECE)):
        waiting += tokenizer.encode(piece, add_special_tokens=False).ids
        while len(waiting) >= length:
            yield waiting[:length]
            waiting = waiting[length:]
            is_first = False
    if is_first and waiting:
        yield waiting


def _is_long(path: Path, tokenizer: Any, tokens: int) -> bool:
    """Whether a text in lines has so many tokens, by those of its beginning."""
    with _reading(path):
        size = path.stat().st_size
    begin = next(_text(path, lambda file: file.readlines(min(_PIECE, size // 16))), "")
    read = len(begin.encode())
    found = len(tokenizer.encode(begin, add_special_tokens=False).ids)
    return 0 < read < size // 2 and size * found >= tokens * read


def _spread_windows(path: Path, tokenizer: Any, length: int, count: int) -> Iterator[list[int]]:
    """Windows of exactly ``length`` tokens that begin with a line, at even distances."""
    with _reading(path), path.open("rb") as file:
        size = path.stat().st_size
        for number in range(count):
            file.seek(max(file.tell(), size * number // count))
            if number:
                file.readline()
            tokens: list[int] = []
            while len(tokens) < length and (lines := file.readlines(2 * length)):
                text = b"".join(lines).decode("utf-8")
                tokens += tokenizer.encode(text, add_special_tokens=False).ids
            if len(tokens) >= length:
                yield tokens[:length]


def _lines(path: Path, tokenizer: Any, length: int) -> Iterator[list[int]]:
    """The tokens of each line that is not blank, special tokens included."""
    for line in _text(path, lambda file: [file.readline()]):
        if line.strip():
            tokenizer.enable_truncation(length)
            tokens = tokenizer.encode(line.strip()).ids
            tokenizer.no_truncation()
            yield tokens


def _text(path: Path, read: Callable[[Any], list[str]]) -> Iterator[str]:
    with _reading(path), path.open(encoding="utf-8") as file:
        while piece := "".join(read(file)):
            yield piece


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A file that cannot be read, or is no text, is a sentence."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"{path.name!r} cannot be read as UTF-8 text ({error}): convert it first."
        ) from error


def _is_past(name: str) -> bool:
    return "past" in name and "length" not in name


class _Feeder:
    """Makes every input of a model from a list of tokens."""

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        self._inputs = inputs
        self._past = {spec.name: _past_shape(spec) for spec in inputs if _is_past(spec.name)}
        cached = [shape[-2] for shape in self._past.values() if len(shape) >= 2]
        self._past_length = cached[0] if cached else 0
        for spec in inputs:
            if spec.name not in self._past and _role(spec.name) is None:
                raise CalibrationError(
                    f"Input {spec.name!r} cannot be made from text: known are input_ids, "
                    "attention_mask, position_ids, token_type_ids and past key/values. Give the "
                    "samples as a Python iterable or a folder of .npz files."
                )
        self.static_length = self._length()

    def feed(self, tokens: list[int], pad: int | None) -> dict[str, np.ndarray]:
        """One sample of batch 1; padded with token 0, which the mask hides."""
        size = max(len(tokens), pad or 0)
        ids = np.zeros(size, np.int64)
        ids[: len(tokens)] = tokens
        mask = np.ones(self._past_length + size, np.int64)
        mask[: self._past_length] = 0
        mask[self._past_length + len(tokens) :] = 0
        made = {
            "ids": ids,
            "mask": mask,
            "position": np.arange(self._past_length, self._past_length + size),
            "type": np.zeros(size, np.int64),
        }
        sample: dict[str, np.ndarray] = {}
        for spec in self._inputs:
            if spec.name in self._past:
                sample[spec.name] = np.zeros(self._past[spec.name], spec.dtype)
            else:
                array = made[_role(spec.name) or "ids"].astype(spec.dtype)
                sample[spec.name] = array if len(spec.shape) == 1 else array[None]
        return sample

    def _length(self) -> int | None:
        """The sequence length that the model was exported for, or None when it is dynamic."""
        for spec in self._inputs:
            if _role(spec.name) == "ids" and spec.shape and isinstance(spec.shape[-1], int):
                return spec.shape[-1]
        return None


def _role(name: str) -> str | None:
    """What an input is made from, by its name."""
    for word, role in (
        ("token_type", "type"),
        ("segment", "type"),
        ("mask", "mask"),
        ("position", "position"),
        ("input_ids", "ids"),
        ("tokens", "ids"),
    ):
        if word in name:
            return role
    return None


def _past_shape(spec: TensorSpec) -> tuple[int, ...]:
    """Batch 1 and length 0 for the dynamic axes of a past ``[batch, heads, length, head size]``."""
    rank = len(spec.shape)
    shape: list[int] = []
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, int):
            shape.append(dim)
        elif axis == 0 or axis == rank - 2:
            shape.append(int(axis == 0))
        else:
            raise CalibrationError(
                f"Input {spec.name!r} has shape {list(spec.shape)}: axis {axis} is dynamic where a "
                "static size is needed (number or size of the heads). Export the model with it "
                "fixed, or give the samples as a Python iterable."
            )
    return tuple(shape)
