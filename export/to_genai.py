"""Deploy to onnxruntime-genai: the decoder, its tokenizer, ``genai_config.json``, the kernels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.errors import ArtifactError, ExportError
from onnxq.export.genai import copy_companions, require_genai
from onnxq.export.genai_config import decoder_config, decoder_of, tokens_beside
from onnxq.export.operator_library import bundle_library
from onnxq.export.target import Verdicts
from onnxq.export.to_onnxruntime import OnnxRuntimeCpu
from onnxq.graph import load, save
from onnxq.graph.reading import find_model_file
from onnxq.runtime import open_session
from onnxq.runtime.generation import TextGenerator, generate
from onnxq.runtime.greedy import greedy_tokens

__all__ = ["Genai"]

_CONFIG = "genai_config.json"
_OPEN = {"vocab_size": 1, "head_dim": 1, "num_key_value_heads": 1, "hidden_size": 1}
"""Stands for what the graph may leave to the network's configuration."""
_PROMPT = 6
_COUNT = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Genai(OnnxRuntimeCpu):
    """A folder that onnxruntime-genai generates from, on the CPU.

    Attributes:
        end_token: ends a text; None takes what the ``config.json`` beside the model says.
        context: most tokens of prompt and text together; None likewise.
    """

    end_token: int | None = None
    context: int | None = None

    name: ClassVar[str] = "genai"
    title: ClassVar[str] = "onnxruntime-genai, CPU"

    def check(self, model: ir.Model) -> Verdicts:
        """The verdicts of ONNX Runtime's CPU provider, and whether the interface is a decoder's."""
        verdicts = super().check(model)
        try:
            decoder = decoder_of(model, _OPEN)
        except ExportError as error:
            note = str(error)
        else:
            note = f"a decoder of {decoder.layers} layers with a key/value cache"
        notes = (*verdicts.notes, note)
        return dataclasses.replace(verdicts, target=self.name, notes=notes)

    def build(self, source: Path, staging: Path) -> Mapping[str, Any]:
        """Write model, tokenizer and configuration; generate, and compare with greedy decoding.

        Raises:
            ExportError: the model is no decoder with a cache, or the end token is not known.
            ArtifactError: onnxruntime-genai generates other tokens than ONNX Runtime.
            MissingDependency: onnxruntime-genai is not installed.
        """
        require_genai("Building for onnxruntime-genai")
        file = find_model_file(source)
        model = load(file)
        save(model, staging / "model.onnx")
        copy_companions(file.parent, staging, renamed={file.name: "model.onnx"})
        written = "taken from the source"
        if not (staging / _CONFIG).exists():
            config = self._config(model, tokens_beside(staging))
            (staging / _CONFIG).write_text(json.dumps(config, indent=4), encoding="utf-8")
            written = "written from the graph"
        operators = bundle_library(model, staging)
        return {"config": written, "operators": operators, **_same_tokens(model, staging)}

    def run(
        self, folder: Path, samples: Sequence[Mapping[str, np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        """The scores that onnxruntime-genai computes for each prompt, as output ``logits``."""
        with TextGenerator(folder) as generator:
            return [
                {"logits": generator.scores([int(i) for i in sample["input_ids"].reshape(-1)])}
                for sample in samples
            ]

    def _config(self, model: ir.Model, known: Mapping[str, Any]) -> dict[str, Any]:
        decoder = decoder_of(model, known)
        end = self.end_token if self.end_token is not None else known.get("eos_token_id")
        if end is None:
            raise ExportError(
                "Nothing beside the model says which token ends a text: give it with "
                "--set end_token=N, or put the network's config.json beside the model."
            )
        return decoder_config(
            decoder,
            end=end,
            begin=known.get("bos_token_id"),
            padding=known.get("pad_token_id"),
            context=self.context or int(known.get("max_position_embeddings") or 2048),
        )


def _same_tokens(model: ir.Model, folder: Path) -> dict[str, Any]:
    """Generate with onnxruntime-genai and with ONNX Runtime, from the same prompt."""
    settings = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))["model"]
    context = int(settings["context_length"])
    count = max(1, min(_COUNT, context - _PROMPT))
    vocabulary = int(settings["vocab_size"])
    prompt = [(7 * index + 3) % vocabulary for index in range(_PROMPT)]
    with open_session(folder / "model.onnx") as session:
        wanted = greedy_tokens(session, prompt, count)
    found = list(generate(folder, prompt, count).ids)
    if found != wanted[: len(found)] or not found:
        raise ArtifactError(
            f"onnxruntime-genai generates {found} after the prompt {prompt}, and greedy decoding "
            f"with ONNX Runtime gives {wanted}: the cache of {model.graph.name!r} is not what "
            f"{_CONFIG} says. Check past_present_share_buffer and the names of the cache."
        )
    return {"generated": found, "equal to greedy decoding": True}
