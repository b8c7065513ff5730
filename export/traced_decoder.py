"""Decoders that onnxruntime-genai's model builder does not know, traced by torch with their cache.

Slower to export than the builder (a minute where it takes six seconds) and made of more nodes, but
any transformers model whose cache is one key and one value per layer goes through. The names are
those of the builder, so everything downstream sees the same interface.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from onnxq.errors import ExportError
from onnxq.export.genai_config import Decoder, decoder_config
from onnxq.export.hf_folder import load_module
from onnxq.export.tracing import evaluation_mode, trace_module
from onnxq.graph import save

__all__ = ["trace_decoder"]

_BATCH, _LENGTH, _PAST = 2, 4, 3
"""Sizes of the example; all different, so that the exporter takes no two axes for one."""


def trace_decoder(checkpoint: Path, folder: Path) -> None:
    """Write ``model.onnx`` and ``genai_config.json`` of a causal language model.

    Args:
        checkpoint: folder with ``config.json`` and safetensors.
        folder: existing folder to write into.

    Raises:
        ExportError: the cache is not one key and one value per layer, or the exporter failed.
    """
    module = load_module("AutoModelForCausalLM", checkpoint)
    with evaluation_mode(module):
        shapes = _cache_shapes(module)
        inputs, axes = _example(module, shapes)
        outputs = ["logits", *_cache_names("present", len(shapes))]
        model = trace_module(
            _with_flat_cache(module, tuple(inputs), len(shapes)),
            inputs,
            dynamic_shapes=axes,
            output_names=outputs,
        )
    fixed = len(inputs) - 2 * len(shapes)
    for value, name in zip(
        model.graph.inputs[fixed:], _cache_names("past_key_values", len(shapes)), strict=True
    ):
        value.name = name
    save(model, folder / "model.onnx")
    text = json.dumps(_genai_config(module, shapes, list(inputs)[:fixed]), indent=4)
    (folder / "genai_config.json").write_text(text, encoding="utf-8")


def _cache_names(stem: str, layers: int) -> list[str]:
    return [f"{stem}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def _cache_shapes(module: Any) -> list[tuple[int, int]]:
    """(heads, head size) of each layer's cache, found by running one token."""
    import torch

    with torch.no_grad():
        outputs = module(input_ids=torch.zeros((1, 1), dtype=torch.int64))
    cache = getattr(outputs, "past_key_values", None)
    layers = getattr(cache, "layers", None)
    pairs: list[tuple[Any, Any]] = [
        (getattr(x, "keys", None), getattr(x, "values", None)) for x in layers or ()
    ]
    if not pairs or any(
        not isinstance(tensor, torch.Tensor) or tensor.dim() != 4
        for pair in pairs
        for tensor in pair
    ):
        raise ExportError(
            f"onnxruntime-genai's model builder does not know {type(module).__name__}, and it is "
            "not traced either, because it keeps something else than one key and one value per "
            f"layer ({type(cache).__name__}). Export it without a cache through from_torch."
        )
    return [(int(key.shape[1]), int(key.shape[3])) for key, _ in pairs]


def _example(
    module: Any, shapes: list[tuple[int, int]]
) -> tuple[dict[str, Any], dict[str, dict[int, str]]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    vocabulary = int(module.config.vocab_size)
    tokens = {0: "batch_size", 1: "sequence_length"}
    inputs = {
        "input_ids": torch.randint(0, vocabulary, (_BATCH, _LENGTH), generator=generator),
        "attention_mask": torch.ones((_BATCH, _PAST + _LENGTH), dtype=torch.int64),
    }
    axes = {"input_ids": tokens, "attention_mask": {0: "batch_size", 1: "total_sequence_length"}}
    if "position_ids" in inspect.signature(module.forward).parameters:
        positions = torch.arange(_PAST, _PAST + _LENGTH)
        inputs["position_ids"] = positions.repeat(_BATCH, 1)
        axes["position_ids"] = tokens
    for layer, (heads, size) in enumerate(shapes):
        for part in ("key", "value"):
            name = f"past_{part}_{layer}"
            inputs[name] = torch.randn((_BATCH, heads, _PAST, size), generator=generator)
            axes[name] = {0: "batch_size", 2: "past_sequence_length"}
    return inputs, axes


def _with_flat_cache(module: Any, names: tuple[str, ...], layers: int) -> Any:
    """Wrap a module so that its cache comes and goes as tensors."""
    import torch
    from transformers import DynamicCache

    class FlatCache(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, **inputs: Any) -> Any:
            cache = DynamicCache()
            for layer in range(layers):
                key, value = inputs.pop(f"past_key_{layer}"), inputs.pop(f"past_value_{layer}")
                cache.update(key, value, layer)
            outputs = self.network(**inputs, past_key_values=cache, use_cache=True)
            grown = outputs.past_key_values.layers
            return (outputs.logits, *(t for layer in grown for t in (layer.keys, layer.values)))

    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in ("self", *names)
    ]
    # The exporter reads the names of the inputs from the signature.
    forward: Any = FlatCache.forward
    forward.__signature__ = inspect.Signature(parameters)
    return FlatCache()


def _genai_config(module: Any, shapes: list[tuple[int, int]], inputs: list[str]) -> dict[str, Any]:
    """What onnxruntime-genai needs to know; the cache grows by Concat, so it shares no buffer."""
    config = module.config
    heads, size = shapes[0]
    end = module.generation_config.eos_token_id
    return decoder_config(
        Decoder(
            layers=len(shapes),
            heads=int(config.num_attention_heads),
            cache_heads=heads,
            head_size=size,
            hidden_size=int(config.hidden_size),
            vocabulary=int(config.vocab_size),
            inputs={name: name for name in inputs},
        ),
        end=config.eos_token_id if end is None else end,
        begin=config.bos_token_id,
        padding=config.pad_token_id,
        context=int(getattr(config, "max_position_embeddings", None) or 2048),
    )
