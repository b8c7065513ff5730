"""Generate text with onnxruntime-genai from a folder it understands, and time its two phases.

Prefill reads the whole prompt at once and is bound by arithmetic; decode reads one token at a time
and is bound by memory. They are timed apart: prefill ends when the first new token is known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import MissingDependency, ModelLoadError, OnnxqError
from onnxq.runtime.closing import Closing

__all__ = ["Generation", "TextGenerator", "generate", "is_text_generation"]

_CONFIG = "genai_config.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """What was generated, and how long it took.

    Attributes:
        ids: the new tokens, without the prompt.
        prompt_tokens: tokens of the prompt.
        prefill_seconds: from the prompt to the first new token.
        decode_seconds: from the first new token to the last.
    """

    ids: tuple[int, ...]
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float

    @property
    def prefill_rate(self) -> float:
        """Tokens of the prompt per second."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_rate(self) -> float | None:
        """New tokens per second after the first; None when there were fewer than two."""
        return (len(self.ids) - 1) / self.decode_seconds if len(self.ids) > 1 else None


def is_text_generation(folder: str | Path) -> bool:
    """Whether the folder is one that onnxruntime-genai generates from."""
    return (Path(folder) / _CONFIG).is_file()


def generate(
    folder: str | Path,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    threads: int | None = None,
) -> Generation:
    """Load a model, generate greedily once, and free it; see `TextGenerator.generate`."""
    with TextGenerator(folder, threads=threads) as generator:
        return generator.generate(prompt_ids, max_new_tokens)


class TextGenerator(Closing):
    """A decoder loaded in onnxruntime-genai. A context manager."""

    def __init__(self, folder: str | Path, *, threads: int | None = None) -> None:
        """Load the model of a folder with ``genai_config.json``.

        Args:
            folder: an artifact or export for text generation.
            threads: threads inside an operator; None leaves the choice to the runtime.

        Raises:
            ModelLoadError: it is no such folder, or onnxruntime-genai does not load it.
            MissingDependency: onnxruntime-genai is not installed.
        """
        self._folder = Path(folder)
        if not is_text_generation(self._folder):
            raise ModelLoadError(
                f"{self._folder} holds no {_CONFIG}, so onnxruntime-genai cannot generate from "
                "it: export the model for text generation first."
            )
        try:
            import onnxruntime_genai
        except ImportError as error:
            raise MissingDependency("onnxruntime-genai", "genai", "Generating text") from error
        self._genai: Any = onnxruntime_genai
        with self._translated("load"):
            config = onnxruntime_genai.Config(str(self._folder))
            if threads is not None:
                options = {"session_options": {"intra_op_num_threads": threads}}
                config.overlay(json.dumps({"model": {"decoder": options}}))
            self._model: Any = onnxruntime_genai.Model(config)

    def close(self) -> None:
        """Free the model."""
        self._model = None

    @property
    def vocabulary(self) -> int:
        """Number of token ids of the model, as ``genai_config.json`` tells."""
        return int(self._settings()["vocab_size"])

    @property
    def context(self) -> int:
        """Most tokens of prompt and generation together."""
        return int(self._settings()["context_length"])

    def _settings(self) -> dict[str, Any]:
        config = json.loads((self._folder / _CONFIG).read_text(encoding="utf-8"))
        return dict(config["model"])

    def generate(
        self, prompt_ids: Sequence[int], max_new_tokens: int, *, stop_at_end: bool = True
    ) -> Generation:
        """Generate greedily.

        Args:
            prompt_ids: token ids of the prompt, at least one.
            max_new_tokens: new tokens at most, at least one.
            stop_at_end: stop at the model's end token; False never picks that token, so that
                the number of tokens is known when speed is measured.

        Raises:
            ValueError: there is no prompt, or no token is asked for.
            OnnxqError: onnxruntime-genai failed; its message is kept.
        """
        if len(prompt_ids) == 0 or max_new_tokens < 1:
            raise ValueError("generate needs at least one token of prompt and one new token")
        length = len(prompt_ids) + max_new_tokens
        with self._translated("run"):
            params = self._genai.GeneratorParams(self._model)
            params.set_search_options(
                do_sample=False,
                num_beams=1,
                max_length=length,
                min_length=0 if stop_at_end else length,
            )
            generator = self._genai.Generator(self._model, params)
            ids: list[int] = []
            start = time.perf_counter()
            generator.append_tokens(np.asarray(prompt_ids, np.int32).reshape(1, -1))
            first = start
            while not generator.is_done() and len(ids) < max_new_tokens:
                generator.generate_next_token()
                ids.append(int(generator.get_next_tokens()[0]))
                if len(ids) == 1:
                    first = time.perf_counter()
            end = time.perf_counter()
        return Generation(
            ids=tuple(ids),
            prompt_tokens=len(prompt_ids),
            prefill_seconds=first - start,
            decode_seconds=end - first,
        )

    def scores(self, prompt_ids: Sequence[int]) -> np.ndarray:
        """Scores of the next token at every place of a prompt, [1, length, vocabulary].

        Raises:
            OnnxqError: onnxruntime-genai failed; its message is kept.
        """
        with self._translated("run"):
            params = self._genai.GeneratorParams(self._model)
            params.set_search_options(do_sample=False, max_length=len(prompt_ids) + 1)
            generator = self._genai.Generator(self._model, params)
            generator.append_tokens(np.asarray(prompt_ids, np.int32).reshape(1, -1))
            return np.array(generator.get_output("logits"))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, by the folder's ``tokenizer.json``."""
        return list(self._tokenizer().encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self._tokenizer().decode(list(ids), skip_special_tokens=True))

    def _tokenizer(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            raise MissingDependency("tokenizers", "hf", "Reading text") from error
        path = self._folder / "tokenizer.json"
        if not path.is_file():
            raise ModelLoadError(f"{self._folder} holds no tokenizer.json: give token ids instead.")
        return tokenizers.Tokenizer.from_file(str(path))

    @contextlib.contextmanager
    def _translated(self, verb: str) -> Iterator[None]:
        """Turn what onnxruntime-genai raises (RuntimeError of its own) into our errors."""
        kind = ModelLoadError if verb == "load" else OnnxqError
        try:
            yield
        except RuntimeError as error:
            raise kind(f"onnxruntime-genai could not {verb} {self._folder}: {error}") from error
