"""Which task an architecture of transformers is for."""

from __future__ import annotations

__all__ = ["TASKS", "task_of_architecture"]

_ARCHITECTURES = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "WhisperForConditionalGeneration": "automatic-speech-recognition",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "ForMaskedLM": "fill-mask",
    "Model": "feature-extraction",
}
"""Task by the ending of the architecture's name; the first that fits is taken."""

TASKS = tuple(sorted(set(_ARCHITECTURES.values())))
"""The tasks that `onnxq.export.from_hf` exports."""


def task_of_architecture(architecture: str) -> str | None:
    """The task of an architecture such as ``LlamaForCausalLM``; None when it has none here."""
    for ending, task in _ARCHITECTURES.items():
        if architecture.endswith(ending):
            return task
    return None
