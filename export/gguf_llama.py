"""A llama-family GGUF file to a Hugging Face folder in float32, without building the module.

transformers reads such files too, but parses the header three times and fills a module first:
17 s where this takes 3 s for a 135 M model. It stays the path for all other architectures. The
two are compared bit by bit in the tests.

llama.cpp stores the rows of q and k of the ``llama`` architecture interleaved for its own rotary
embedding (``permute`` in convert_hf_to_gguf.py); that is undone here. Qwen files are not permuted.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import ExportError, MissingDependency
from onnxq.export.gguf_file import GgufFile

__all__ = ["converts_directly", "write_checkpoint"]

_SHARD_BYTES = 2 << 30
_FAMILIES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"


def converts_directly(file: GgufFile) -> bool:
    """Whether every tensor of the file has a known place in a dense llama-family model."""
    if file.architecture not in _FAMILIES:
        return False
    return all(name == _ROPE_FACTORS or _renamed(name) is not None for name in file.tensors)


def write_checkpoint(file: GgufFile, folder: Path) -> None:
    """Write ``config.json`` and float32 safetensors of a file that `converts_directly`.

    Raises:
        ExportError: a hyperparameter is missing, or a rotary scaling has no counterpart.
        MissingDependency: safetensors is not installed.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise MissingDependency("safetensors", "gguf", "Converting a GGUF file") from error
    (folder / "config.json").write_text(json.dumps(_config(file), indent=2), encoding="utf-8")
    shards = list(_shards(file))
    index: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        shard = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        if len(shards) == 1:
            shard = "model.safetensors"
        tensors = {str(_renamed(name)): _weight(file, name) for name in names}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, shard))
    if len(shards) > 1:
        text = json.dumps({"metadata": {}, "weight_map": index}, indent=2)
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _renamed(name: str) -> str | None:
    """The transformers name of a llama.cpp tensor, None when there is no such tensor."""
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if match is None or match[2] not in _BLOCK_NAMES:
        return None
    return f"model.layers.{match[1]}.{_BLOCK_NAMES[match[2]]}.{kind}"


def _shards(file: GgufFile) -> Iterator[list[str]]:
    """Tensor names in groups of at most `_SHARD_BYTES` as float32, so memory stays bounded."""
    group: list[str] = []
    size = 0
    for name, tensor in file.tensors.items():
        if name == _ROPE_FACTORS:
            continue
        nbytes = 4 * math.prod(tensor.shape)
        if group and size + nbytes > _SHARD_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += nbytes
    yield group


def _weight(file: GgufFile, name: str) -> np.ndarray:
    weight = file.read(name)
    if file.architecture == "llama" and re.search(r"\.attn_[qk]\.", name):
        key = "attention.head_count" if ".attn_q." in name else "attention.head_count_kv"
        heads = int(file.hyperparameter(key, _required(file, "attention.head_count")))
        halves = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
        weight = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
    return weight


def _config(file: GgufFile) -> dict[str, Any]:
    architecture, model_type = _FAMILIES[file.architecture]
    heads = int(_required(file, "attention.head_count"))
    hidden = int(_required(file, "embedding_length"))
    head_dim = int(file.tensors["blk.0.attn_q.weight"].shape[0]) // heads
    tokenizer = {
        f"{role}_token_id": file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    biases = {name.split(".")[2] for name in file.tensors if name.endswith(".bias")}
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": int(_required(file, "feed_forward_length")),
        "num_hidden_layers": int(_required(file, "block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(file.hyperparameter("attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "vocab_size": int(file.tensors["token_embd.weight"].shape[0]),
        "max_position_embeddings": int(_required(file, "context_length")),
        "rms_norm_eps": float(_required(file, "attention.layer_norm_rms_epsilon")),
        "rope_parameters": _rope(file, head_dim),
        "hidden_act": "silu",
        "attention_bias": bool(biases & {"attn_q", "attn_k", "attn_v", "attn_output"}),
        "mlp_bias": bool(biases & {"ffn_gate", "ffn_up", "ffn_down"}),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": "float32",
        **{key: value for key, value in tokenizer.items() if value is not None},
    }


def _rope(file: GgufFile, head_dim: int) -> dict[str, Any]:
    """The rotary parameters; a scaling that transformers would silently drop is refused."""
    theta = float(file.hyperparameter("rope.freq_base", 10000.0))
    rotated = int(file.hyperparameter("rope.dimension_count", head_dim))
    if rotated != head_dim:
        raise ExportError(
            f"{str(file.path)!r} rotates {rotated} of {head_dim} head dimensions, which the "
            f"{file.architecture} architecture of transformers cannot express. Export it from "
            "its original Hugging Face checkpoint."
        )
    if _ROPE_FACTORS in file.tensors:
        return _llama3_rope(file, theta, head_dim)
    scaling = str(file.hyperparameter("rope.scaling.type", "none"))
    if scaling == "none":
        return {"rope_type": "default", "rope_theta": theta}
    factor = file.hyperparameter("rope.scaling.factor")
    if scaling == "linear" and factor is not None:
        return {"rope_type": "linear", "rope_theta": theta, "factor": float(factor)}
    raise ExportError(
        f"{str(file.path)!r} scales its rotary embedding by {scaling!r}, which is not read from "
        "GGUF. Export it from its original Hugging Face checkpoint."
    )


def _llama3_rope(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """Recover Llama 3.1's rotary scaling from the divisors that llama.cpp computed of it.

    convert_hf_to_gguf stores, for each frequency, the divisor 1 (short wavelengths), ``factor``
    (long ones) or a blend; low and high frequency factors are 1 and 4 and the original context
    is 8192 in every Llama 3.x release. The divisors are computed anew and compared.
    """
    stored = file.read(_ROPE_FACTORS).astype(np.float64)
    factor, low, high, context = float(stored.max()), 1.0, 4.0, 8192
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((context / wavelength - low) / (high - low), 0.0, 1.0)
    divisors = 1.0 / ((1.0 - smooth) / factor + smooth)
    if stored.shape != divisors.shape or not np.allclose(stored, divisors, rtol=1e-5):
        raise ExportError(
            f"{str(file.path)!r} carries rotary divisors ({_ROPE_FACTORS}) that are not those of "
            "Llama 3.x. Export it from its original Hugging Face checkpoint."
        )
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }


def _required(file: GgufFile, key: str) -> Any:
    value = file.hyperparameter(key)
    if value is None or isinstance(value, list):
        raise ExportError(
            f"{str(file.path)!r} does not state {file.architecture}.{key} as one number, so its "
            "configuration cannot be written. Convert the model again with a current llama.cpp."
        )
    return value
