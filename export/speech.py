"""A Whisper checkpoint to a checked encoder and decoder with key/value caches.

The encoder gives the keys and values of cross-attention, computed once; the decoder reads them
and carries its own cache. Both are written by onnxruntime-genai's model builder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxq.errors import ExportError
from onnxq.export.check import Outputs, Verdict, judge, rounding_bound_of_module
from onnxq.export.exported import Exported, fresh_folder
from onnxq.export.genai import build_with_genai, copy_companions
from onnxq.export.hf_folder import load_module, read_config
from onnxq.runtime import Session, open_session

__all__ = ["check_speech", "export_speech"]

_FRAMES = 3000
"""Frames of 10 ms in the 30 s window that Whisper always sees."""

_BATCH = 2
_PROMPT = 4
_DECODE_STEPS = 3


def export_speech(
    checkpoint: Path, out: str | Path, *, source: str, overwrite: bool = False
) -> Exported:
    """Export a Whisper checkpoint to ``encoder.onnx`` and ``decoder.onnx``.

    Args:
        checkpoint: folder of a ``WhisperForConditionalGeneration`` with its tokenizer.
        out: folder to write.
        source: what to call the model in messages.
        overwrite: replace a model folder that is there.

    Raises:
        ExportError: encoder and decoder differ in depth, the builder failed, or the export does
            not match.
        MissingDependency: transformers, torch or onnxruntime-genai is not installed.
    """
    _require_equal_depth(checkpoint)
    with fresh_folder(out, overwrite=overwrite) as folder:
        build_with_genai(checkpoint, folder, models=("encoder.onnx", "decoder.onnx"))
        copy_companions(checkpoint, folder)
        module = load_module("AutoModelForSpeechSeq2Seq", checkpoint)
        with (
            open_session(folder / "encoder.onnx") as encoder,
            open_session(folder / "decoder.onnx") as decoder,
        ):
            verdict = check_speech(encoder, decoder, module, source=f"transformers on {source}")
    out = Path(out)
    return Exported(
        folder=out,
        models={"encoder": out / "encoder.onnx", "decoder": out / "decoder.onnx"},
        task="automatic-speech-recognition",
        source=source,
        largest_error=verdict.largest,
        bound=verdict.bound,
        errors=verdict.errors,
        notes=("encoder and decoder by onnxruntime-genai's model builder", *verdict.notes),
    )


def _require_equal_depth(checkpoint: Path) -> None:
    """Refuse what the builder (0.18) writes wrongly: cross-attention by the encoder's layers."""
    config = read_config(checkpoint)
    encoder, decoder = config.get("encoder_layers"), config.get("decoder_layers")
    if encoder != decoder:
        raise ExportError(
            f"{str(checkpoint)!r} has {encoder} encoder and {decoder} decoder layers, and "
            "onnxruntime-genai's model builder writes cross-attention only for equal numbers. "
            "Wrap encoder and decoder in modules of your own and export them with from_torch."
        )


def check_speech(
    encoder: Session, decoder: Session, module: Any, *, source: str, seed: int = 0
) -> Verdict:
    """Compare an exported Whisper with its module: hidden states, prompt and decode logits.

    Args:
        encoder: input ``audio_features`` [batch, mel bins, 3000]; outputs ``hidden_states`` and
            ``present_key_cross_N`` / ``present_value_cross_N``.
        decoder: inputs ``input_ids`` [batch, length] and the caches; outputs ``logits`` and
            ``present_key_self_N`` / ``present_value_self_N``.
        module: the transformers module in float32 and eval mode.
        source: what to call the source in messages.
        seed: seed of features and token ids.

    Raises:
        ExportError: they do not agree, see `onnxq.export.check.judge`.
    """
    generator = np.random.default_rng(seed)
    config = module.config
    shape = (_BATCH, int(config.num_mel_bins), _FRAMES)
    features = generator.standard_normal(shape, dtype=np.float32)
    ids = generator.integers(0, int(config.vocab_size), (_BATCH, _PROMPT + _DECODE_STEPS))

    def run(make: Callable[[], _Speech]) -> Outputs:
        speech = make()
        outputs = {"encoder": speech.encode(features), "prompt": speech.step(ids[:, :_PROMPT])}
        for number in range(_DECODE_STEPS):
            column = ids[:, _PROMPT + number : _PROMPT + number + 1]
            outputs[f"decode step {number + 1}"] = speech.step(column)
        return outputs

    return judge(
        run(lambda: _OnnxSpeech(encoder, decoder, config)),
        lambda: run(lambda: _TorchSpeech(module)),
        lambda: run(lambda: _TorchSpeech(module.double())),
        bound=rounding_bound_of_module(module),
        source=source,
    )


class _Speech(Protocol):
    def encode(self, features: np.ndarray) -> np.ndarray: ...

    def step(self, ids: np.ndarray) -> np.ndarray: ...


class _OnnxSpeech:
    """The exported pair, carrying both caches."""

    def __init__(self, encoder: Session, decoder: Session, config: Any) -> None:
        self._encoder, self._decoder = encoder, decoder
        heads = int(config.decoder_attention_heads)
        self._empty = np.zeros((_BATCH, heads, 0, int(config.d_model) // heads), np.float32)
        self._past: dict[str, np.ndarray] = {}

    def encode(self, features: np.ndarray) -> np.ndarray:
        outputs = self._encoder.run({"audio_features": features})
        self._carry(outputs)
        return outputs["hidden_states"]

    def step(self, ids: np.ndarray) -> np.ndarray:
        feeds: dict[str, np.ndarray] = {}
        for spec in self._decoder.inputs:
            value = ids if spec.name == "input_ids" else self._past.get(spec.name, self._empty)
            feeds[spec.name] = np.ascontiguousarray(value, dtype=spec.dtype)
        outputs = self._decoder.run(feeds)
        self._carry(outputs)
        return outputs["logits"]

    def _carry(self, outputs: Outputs) -> None:
        for name, value in outputs.items():
            if name.startswith("present"):
                self._past[name.replace("present", "past", 1)] = value


class _TorchSpeech:
    """The transformers module, carrying its cache."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._cache: Any = None
        self._encoded: Any = None

    def encode(self, features: np.ndarray) -> np.ndarray:
        import torch

        with torch.no_grad():
            given = torch.from_numpy(features).to(self._module.dtype)
            self._encoded = self._module.get_encoder()(given)
        return np.asarray(self._encoded.last_hidden_state.numpy())

    def step(self, ids: np.ndarray) -> np.ndarray:
        import torch

        with torch.no_grad():
            outputs = self._module(
                decoder_input_ids=torch.from_numpy(ids),
                encoder_outputs=self._encoded,
                past_key_values=self._cache,
                use_cache=True,
            )
        self._cache = outputs.past_key_values
        return np.asarray(outputs.logits.numpy())
