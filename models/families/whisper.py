"""Whisper (Radford et al., ICML 2023) from CTranslate2's names to a transformers checkpoint."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperForConditionalGeneration

from onnxq.errors import ModelLoadError
from onnxq.models.ctranslate2_file import read_ctranslate2

__all__ = ["transformers_arrays", "write_checkpoint"]

_START, _END = 50257, 50256
_LAYER = re.compile(r"(encoder|decoder)/layer_(\d+)/(.*)/(weight|bias|gamma|beta)$")
_LEAVES = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
_IN_LAYER = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
_OUTSIDE = {
    "encoder/conv1/weight": "encoder.conv1.weight",
    "encoder/conv1/bias": "encoder.conv1.bias",
    "encoder/conv2/weight": "encoder.conv2.weight",
    "encoder/conv2/bias": "encoder.conv2.bias",
    "encoder/position_encodings/encodings": "encoder.embed_positions.weight",
    "encoder/layer_norm/gamma": "encoder.layer_norm.weight",
    "encoder/layer_norm/beta": "encoder.layer_norm.bias",
    "decoder/embeddings/weight": "decoder.embed_tokens.weight",
    "decoder/position_encodings/encodings": "decoder.embed_positions.weight",
    "decoder/layer_norm/gamma": "decoder.layer_norm.weight",
    "decoder/layer_norm/beta": "decoder.layer_norm.bias",
}


def transformers_arrays(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and float32 array of every parameter, fused projections split.

    Args:
        arrays: what `read_ctranslate2` gives; settings and aliases in it are passed over.
    """
    for name, array in arrays.items():
        if name in _OUTSIDE:
            yield f"model.{_OUTSIDE[name]}", array.astype(np.float32)
        elif match := _LAYER.fullmatch(name):
            side, layer, part, leaf = match.groups()
            targets = _IN_LAYER[part]
            for target, piece in zip(targets, np.split(array, len(targets)), strict=True):
                # The keys' bias is a row of zeros that only the fused form has.
                if not (target.endswith("k_proj") and leaf == "bias"):
                    path = f"model.{side}.layers.{layer}.{target}.{_LEAVES[leaf]}"
                    yield path, piece.astype(np.float32)


def write_checkpoint(source: Path, folder: Path) -> None:
    """Write a transformers checkpoint with its tokenizer from a folder of CTranslate2's.

    Args:
        source: folder with ``model.bin`` and ``tokenizer.json``.
        folder: existing folder to write.

    Raises:
        ModelLoadError: the file is not a Whisper model, or its weights are not the whole of one.
    """
    specification, arrays = read_ctranslate2(source / "model.bin")
    if specification != "WhisperSpec":
        raise ModelLoadError(
            f"{str(source / 'model.bin')!r} holds a {specification}, and a WhisperSpec is needed."
        )
    module = WhisperForConditionalGeneration(_config(arrays)).eval()
    state = {name: torch.from_numpy(array) for name, array in transformers_arrays(arrays)}
    missing, unexpected = module.load_state_dict(state, strict=False)
    missing = [name for name in missing if name != "proj_out.weight"]
    if missing or unexpected:
        raise ModelLoadError(
            f"{str(source / 'model.bin')!r} is not a whole Whisper model: missing "
            f"{missing[:3]}, not known {unexpected[:3]}."
        )
    module.tie_weights()
    module.save_pretrained(folder)
    shutil.copy(source / "tokenizer.json", folder / "tokenizer.json")
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>"
    ).save_pretrained(folder)


def _config(arrays: Mapping[str, np.ndarray]) -> WhisperConfig:
    vocabulary, width = arrays["decoder/embeddings/weight"].shape
    encoder, decoder = (
        len({match[2] for name in arrays if (match := _LAYER.match(name)) and match[1] == side})
        for side in ("encoder", "decoder")
    )
    heads = int(arrays["encoder/num_heads"])
    inner = arrays["encoder/layer_0/ffn/linear_0/weight"].shape[0]
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=arrays["encoder/conv1/weight"].shape[1],
        encoder_layers=encoder,
        decoder_layers=decoder,
        encoder_attention_heads=heads,
        decoder_attention_heads=int(arrays["decoder/num_heads"]),
        encoder_ffn_dim=inner,
        decoder_ffn_dim=inner,
        decoder_start_token_id=_START,
        bos_token_id=_END,
        eos_token_id=_END,
        pad_token_id=_END,
    )
