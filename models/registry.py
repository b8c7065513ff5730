"""Every task by name. Listing them imports neither a framework nor a runtime."""

from __future__ import annotations

from onnxq.errors import ZooError, nearest_word
from onnxq.models.digits import DigitsVit
from onnxq.models.efficientnet import EfficientNetLite0
from onnxq.models.glassllm import GlassLm
from onnxq.models.minilm import MiniLm
from onnxq.models.ppocr import PpOcr
from onnxq.models.quire import QuireTagger
from onnxq.models.silero import SileroVad
from onnxq.models.smollm2 import SmolLm2
from onnxq.models.task import Task
from onnxq.models.whisper import WhisperTiny

__all__ = ["task", "tasks"]


def tasks() -> dict[str, Task]:
    """All tasks with their default settings, by name.

    The name is also that of the zoo entry of the model, where it is fetched and not trained here.
    """
    everything: list[Task] = [
        SmolLm2(),
        GlassLm(),
        WhisperTiny(),
        MiniLm(),
        EfficientNetLite0(),
        PpOcr(),
        SileroVad(),
        QuireTagger(),
        DigitsVit(),
    ]
    return {one.name: one for one in everything}


def task(name: str) -> Task:
    """One task by name.

    Raises:
        ZooError: there is none; the nearest name is suggested.
    """
    known = tasks()
    if name in known:
        return known[name]
    near = nearest_word(name, known)
    hint = f"Did you mean {near!r}? " if near else ""
    raise ZooError(f"No task named {name!r}. {hint}Known: {', '.join(known)}.")
