"""``genai_config.json`` of a plain decoder: what onnxruntime-genai must know to run it.

Exporters that know the network write it from there; `decoder_of` reads it off a finished graph,
with what the ``config.json`` beside it says of tokens and context.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq.errors import ExportError
from onnxq.export.genai import read_json

__all__ = ["Decoder", "decoder_config", "decoder_of", "tokens_beside"]

_TYPE = "llama"
"""Of onnxruntime-genai's names for a plain decoder with separate keys and values."""

_KNOWN_INPUTS = ("input_ids", "attention_mask", "position_ids")
_SHARING = ("GroupQueryAttention",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
    """The interface of a decoder with one key and one value per layer.

    Attributes:
        layers: number of them.
        heads: of queries.
        cache_heads: of keys and values.
        head_size: last axis of the cache.
        hidden_size: width of the residual stream.
        vocabulary: scores of a position.
        inputs: names in the graph of ``input_ids``, ``attention_mask`` and ``position_ids``.
        past: (key, value) names of cache inputs, with ``%d`` for the layer.
        present: of cache outputs.
        shares_buffer: whether past and present may be one buffer, which only operators that write
            into it in place allow.
    """

    layers: int
    heads: int
    cache_heads: int
    head_size: int
    hidden_size: int
    vocabulary: int
    inputs: Mapping[str, str]
    past: tuple[str, str] = ("past_key_values.%d.key", "past_key_values.%d.value")
    present: tuple[str, str] = ("present.%d.key", "present.%d.value")
    shares_buffer: bool = False


def decoder_config(
    decoder: Decoder,
    *,
    end: int | Sequence[int],
    begin: int | None,
    padding: int | None,
    context: int,
    filename: str = "model.onnx",
) -> dict[str, Any]:
    """The content of ``genai_config.json``.

    Args:
        decoder: the interface of the graph.
        end: token, or tokens, that end a text.
        begin: token that begins one; the end token when None.
        padding: of a batch; likewise.
        context: most tokens of prompt and text together.
        filename: of the model.
    """
    first_end = int(end) if isinstance(end, int) else int(end[0])
    described = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": filename,
        "head_size": decoder.head_size,
        "hidden_size": decoder.hidden_size,
        "inputs": {
            **decoder.inputs,
            "past_key_names": decoder.past[0],
            "past_value_names": decoder.past[1],
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": decoder.present[0],
            "present_value_names": decoder.present[1],
        },
        "num_attention_heads": decoder.heads,
        "num_hidden_layers": decoder.layers,
        "num_key_value_heads": decoder.cache_heads,
    }
    return {
        "model": {
            "bos_token_id": first_end if begin is None else begin,
            "context_length": context,
            "decoder": described,
            "eos_token_id": end if isinstance(end, int) else list(end),
            "pad_token_id": first_end if padding is None else padding,
            "type": _TYPE,
            "vocab_size": decoder.vocabulary,
        },
        "search": {
            "max_length": context,
            "do_sample": False,
            "past_present_share_buffer": decoder.shares_buffer,
        },
    }


def decoder_of(model: ir.Model, config: Mapping[str, Any]) -> Decoder:
    """Read the interface of a decoder off its graph.

    Args:
        model: inputs ``input_ids``, optionally ``attention_mask`` and ``position_ids``, and one
            past key and value per layer [batch, heads, past, head size]; outputs ``logits`` and
            the present ones.
        config: of the network (``config.json``), for what the graph leaves open; may be empty.

    Raises:
        ExportError: the graph has another interface: what is missing, and what to do.
    """
    inputs = {value.name or "": value for value in model.graph.inputs}
    outputs = {value.name or "": value for value in model.graph.outputs}
    past, layers = _templates([name for name in inputs if "past" in name], "input")
    present, _ = _templates([name for name in outputs if "present" in name], "output")
    strange = [n for n in inputs if n not in _KNOWN_INPUTS and "past" not in n]
    if "input_ids" not in inputs or "logits" not in outputs or strange:
        raise ExportError(
            f"onnxruntime-genai takes a decoder with inputs {', '.join(_KNOWN_INPUTS)} and a "
            f"cache, and an output 'logits'; this model has inputs {', '.join(list(inputs)[:6])} "
            f"and outputs {', '.join(list(outputs)[:4])}. Rename them, or export it again."
        )
    key = inputs[past[0] % 0]
    heads = _size(key, 1, config.get("num_key_value_heads") or config.get("num_attention_heads"))
    size = _size(key, 3, config.get("head_dim") or _quotient(config))
    hidden = int(config.get("hidden_size") or heads * size)
    return Decoder(
        layers=layers,
        heads=int(config.get("num_attention_heads") or hidden // size),
        cache_heads=heads,
        head_size=size,
        hidden_size=hidden,
        vocabulary=_size(outputs["logits"], 2, config.get("vocab_size")),
        inputs={name: name for name in _KNOWN_INPUTS if name in inputs},
        past=past,
        present=present,
        shares_buffer=all(
            any(use.node.op_type in _SHARING for use in value.uses())
            for name, value in inputs.items()
            if "past" in name
        ),
    )


def _quotient(config: Mapping[str, Any]) -> int | None:
    """The head size that is meant where none is told: an equal share of the width."""
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return int(width) // int(heads) if width and heads else None


def tokens_beside(folder: Path) -> dict[str, Any]:
    """What ``config.json`` and ``generation_config.json`` in a folder say; empty without them."""
    found: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            found.update({k: v for k, v in read_json(folder / name).items() if v is not None})
    return found


def _templates(names: Sequence[str], what: str) -> tuple[tuple[str, str], int]:
    """Names of a key and of a value with ``%d`` for the layer, and the number of layers."""
    found: dict[str, list[str]] = {}
    for part in ("key", "value"):
        mine = [name for name in names if part in name.replace("key_values", "")]
        found[part] = list(dict.fromkeys(re.sub(r"\d+", "%d", name, count=1) for name in mine))
    if any(len(templates) != 1 for templates in found.values()) or len(names) % 2:
        raise ExportError(
            f"The model has no key/value cache that onnxruntime-genai understands: the cache "
            f"{what}s are {', '.join(list(names)[:4]) or 'none'}, and one key and one value for "
            "each layer are wanted. Export it with a cache (`onnxq export`, text-generation)."
        )
    return (found["key"][0], found["value"][0]), len(names) // 2


def _size(value: ir.Value, axis: int, known: Any) -> int:
    """A dimension of an interface value, or what the configuration says of it."""
    shape = value.shape
    size = shape[axis] if shape is not None and len(shape) > axis else None
    if isinstance(size, int):
        return size
    if isinstance(known, int):
        return known
    raise ExportError(
        f"Axis {axis} of {value.name!r} has no fixed size, and there is no config.json beside the "
        "model that says it: put the network's config.json there."
    )
