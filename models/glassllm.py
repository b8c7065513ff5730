"""GlassLM: perplexity of a decoder of 0.85 M parameters on the book it was trained on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import numpy as np

from onnxq.errors import MissingDependency
from onnxq.evaluate.perplexity import perplexity
from onnxq.models.glass_tokenizer import GlassTokenizer
from onnxq.models.task import Feeds, Metrics, Models, Task
from onnxq.models.zoo import fetch
from onnxq.runtime import open_session

__all__ = ["GlassLm"]

_EVALUATION = """\
Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing \
to do: once or twice she had peeped into the book her sister was reading, but it had no pictures \
or conversations in it, “and what is the use of a book,” thought Alice “without pictures or \
conversations?” So she was considering in her own mind (as well as she could, for the hot day made \
her feel very sleepy and stupid), whether the pleasure of making a daisy-chain would be worth the \
trouble of getting up and picking the daisies, when suddenly a White Rabbit with pink eyes ran \
close by her. There was nothing so very remarkable in that; nor did Alice think it so very much \
out of the way to hear the Rabbit say to itself, “Oh dear! Oh dear! I shall be late!” (when she \
thought it over afterwards, it occurred to her that she ought to have wondered at this, but at the \
time it all seemed quite natural); but when the Rabbit actually took a watch out of its \
waistcoat-pocket, and looked at it, and then hurried on, Alice started to her feet, for it flashed \
across her mind that she had never before seen a rabbit with either a waistcoat-pocket, or a watch \
to take out of it, and burning with curiosity, she ran across the field after it, and fortunately \
was just in time to see it pop down a large rabbit-hole under the hedge. In another moment down \
went Alice after it, never once considering how in the world she was to get out again."""
"""The beginning of Alice's Adventures in Wonderland (Lewis Carroll, 1865; public domain)."""

_CALIBRATION = """\
“Curiouser and curiouser!” cried Alice (she was so much surprised, that for the moment she quite \
forgot how to speak good English); “now I’m opening out like the largest telescope that ever was! \
Good-bye, feet!” (for when she looked down at her feet, they seemed to be almost out of sight, \
they were getting so far off). “Oh, my poor little feet, I wonder who will put on your shoes and \
stockings for you now, dears? I’m sure I shan’t be able! I shall be a great deal too far off to \
trouble myself about you: you must manage the best way you can;—but I must be kind to them,” \
thought Alice, “or perhaps they won’t walk the way I want to go! Let me see: I’ll give them a new \
pair of boots every Christmas.” And she went on planning to herself how she would manage it. “They \
must go by the carrier,” she thought; “and how funny it’ll seem, sending presents to one’s own \
feet! And how odd the directions will look!” Just then her head struck against the roof of the \
hall: in fact she was now more than nine feet high, and she at once took up the little golden key \
and hurried off to the garden door. Poor Alice! It was as much as she could do, lying down on one \
side, to look through into the garden with one eye; but to get through was more hopeless than \
ever: she sat down and began to cry again."""
"""The beginning of its second chapter."""


@dataclasses.dataclass(frozen=True)
class GlassLm(Task):
    """Perplexity on the first paragraphs of Alice in Wonderland.

    Attributes:
        window: tokens in a window; the model knows 128 positions.
    """

    name: ClassVar[str] = "glassllm"
    title: ClassVar[str] = "GlassLM 0.85 M (causal language model, no cache)"
    primary: ClassVar[str] = "perplexity"
    higher_is_better: ClassVar[bool] = False

    window: int = 64

    def build(self, folder: Path) -> dict[str, Path]:
        """Load the weights into the family's definition and export it."""
        from onnxq.export.from_torch import from_torch

        try:
            import torch

            from onnxq.models.families.glass_decoder import GlassConfig, GlassDecoder, load_arrays
        except ImportError as error:
            raise MissingDependency("torch", "torch", "Exporting GlassLM") from error
        with np.load(fetch("glassllm") / "en.npz") as arrays:
            module = GlassDecoder(GlassConfig(**json.loads(str(arrays["__config__"])))).eval()
            load_arrays(module, {name: arrays[name] for name in arrays if name != "__config__"})
        example = torch.from_numpy(self._windows(_EVALUATION)[:2])
        return from_torch(
            module,
            {"input_ids": example},
            folder,
            dynamic_shapes={"input_ids": {0: "batch", 1: "length"}},
            output_names=["logits"],
            task="text-generation",
            overwrite=True,
        ).models

    def calibration(self, models: Models) -> dict[str, list[Feeds]]:
        """Windows of another chapter."""
        return {"model": [{"input_ids": row[None]} for row in self._windows(_CALIBRATION)]}

    def evaluate(self, models: Models, *, source: Models | None = None) -> Metrics:
        """Windowed perplexity; no source needed."""
        with open_session(models["model"]) as session:
            measured = perplexity(session, self._windows(_EVALUATION))
        return {
            "perplexity": measured.perplexity,
            "predictions": float(measured.predictions),
            "protocol": str(measured),
        }

    def held_back(self, models: Models) -> dict[str, list[Feeds]]:
        """The first two windows of the evaluation text."""
        return {"model": [{"input_ids": row[None]} for row in self._windows(_EVALUATION)[:2]]}

    def _windows(self, text: str) -> np.ndarray:
        ids = np.array(GlassTokenizer(fetch("glassllm") / "en.tokenizer.json").encode(text))
        return ids[: len(ids) // self.window * self.window].reshape(-1, self.window)
