"""A vision transformer of our own on handwritten digits: trained where it is built, in a minute.

The data are the 1797 labelled 8 × 8 images of the UCI optical recognition set as scikit-learn ships
them. Nothing trained is stored anywhere but in the work folder of the task.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from onnxq.errors import MissingDependency
from onnxq.evaluate.classification import top1_accuracy, top1_agreement
from onnxq.models.task import Feeds, Metrics, Models, Task
from onnxq.models.zoo import fetch
from onnxq.runtime import open_session

__all__ = ["DigitsVit"]

_SIDE = 8
_GREATEST = 16.0
"""The pixels are counts of 0 to 16."""
_SPLIT_SEED = 17
_BATCH = 64
_TRAINING_BATCH = 32
_RATE = 2e-3
_TURN, _SCALE, _SHIFT = 0.175, 0.1, 0.12
"""Training images are turned by 10 degrees, scaled by a tenth and moved by half a pixel at most."""


@dataclasses.dataclass(frozen=True)
class DigitsVit(Task):
    """Digits; judged by the accuracy on images that neither training nor calibration has seen.

    Attributes:
        test_images: images held out of training; 1797 in all.
        calibration_images: training images, unmoved, that calibration runs on.
        epochs: of training.
        seed: of initialization, order and warps.
    """

    name: ClassVar[str] = "digits-vit"
    title: ClassVar[str] = "ViT trained here (handwritten digits)"
    primary: ClassVar[str] = "accuracy"
    tolerance: ClassVar[float | None] = 0.01

    test_images: int = 597
    calibration_images: int = 256
    epochs: int = 60
    seed: int = 0

    def build(self, folder: Path) -> dict[str, Path]:
        """Train with one thread (the same weights every time), export with a dynamic batch."""
        from onnxq.export.from_torch import from_torch

        try:
            import torch

            from onnxq.models.families.vit import VisionTransformer
        except ImportError as error:
            raise MissingDependency("torch", "torch", "Training the digits model") from error
        pixels, labels = self._training()
        threads = torch.get_num_threads()
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            torch.set_num_threads(1)
            try:
                module = VisionTransformer(_config())
                _train(module, torch.from_numpy(pixels), torch.from_numpy(labels), self.epochs)
            finally:
                torch.set_num_threads(threads)
        return from_torch(
            module.eval(),
            {"pixels": torch.from_numpy(pixels[:1])},
            folder,
            dynamic_shapes={"pixels": {0: "batch"}},
            output_names=["logits"],
            task="image-classification",
            overwrite=True,
        ).models

    def calibration(self, models: Models) -> dict[str, list[Feeds]]:
        """Training images in batches of 16."""
        pixels = self._training()[0][: self.calibration_images]
        return {"model": [{"pixels": batch} for batch in _batches(pixels, 16)]}

    def evaluate(self, models: Models, *, source: Models | None = None) -> Metrics:
        """Accuracy on the held-out images, and agreement with the source on them."""
        pixels, labels = self._held_out()
        logits = _logits(models, pixels)
        reference = logits if source is None else _logits(source, pixels)
        return {
            "accuracy": top1_accuracy(logits, labels),
            "top1_agreement": top1_agreement(logits, reference),
            "images": float(len(labels)),
        }

    def held_back(self, models: Models) -> dict[str, list[Feeds]]:
        """Four batches of held-out images."""
        return {
            "model": [{"pixels": batch} for batch in _batches(self._held_out()[0][:64], 16)],
        }

    def _training(self) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = _images()
        return pixels[self.test_images :], labels[self.test_images :]

    def _held_out(self) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = _images()
        return pixels[: self.test_images], labels[: self.test_images]


@functools.cache
def _images() -> tuple[np.ndarray, np.ndarray]:
    """All images, float32 [1797, 1, 8, 8] from -1 to 1, and labels, int64; in shuffled order.

    The file goes writer by writer, so that a split in its order would test other hands.
    """
    with gzip.open(fetch("digits") / "digits.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",")
    table = table[np.random.default_rng(_SPLIT_SEED).permutation(len(table))]
    pixels = (table[:, :-1] / (_GREATEST / 2) - 1).astype(np.float32)
    return pixels.reshape(-1, 1, _SIDE, _SIDE), table[:, -1].astype(np.int64)


def _batches(pixels: np.ndarray, size: int) -> list[np.ndarray]:
    return [pixels[start : start + size] for start in range(0, len(pixels), size)]


def _logits(models: Models, pixels: np.ndarray) -> np.ndarray:
    with open_session(models["model"]) as session:
        return np.concatenate(
            [
                session.run({"pixels": batch}, ["logits"])["logits"]
                for batch in _batches(pixels, _BATCH)
            ]
        )


def _config() -> Any:
    from onnxq.models.families.vit import VitConfig

    return VitConfig(
        image=_SIDE, patch=2, channels=1, width=64, depth=4, heads=4, inner=256, classes=10
    )


def _train(module: Any, pixels: Any, labels: Any, epochs: int) -> None:
    """AdamW with one cycle of the learning rate, on images turned, scaled and moved a little."""
    import torch

    optimizer = torch.optim.AdamW(module.parameters(), lr=_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=_RATE, total_steps=epochs * -(-len(pixels) // _TRAINING_BATCH)
    )
    for _ in range(epochs):
        for chosen in torch.randperm(len(pixels)).split(_TRAINING_BATCH):
            optimizer.zero_grad()
            scores = module(_warped(pixels[chosen]))
            torch.nn.functional.cross_entropy(scores, labels[chosen]).backward()
            optimizer.step()
            schedule.step()


def _warped(pixels: Any) -> Any:
    """Each image turned, scaled and moved by amounts of its own; what comes in is paper."""
    import torch

    count = len(pixels)
    angle = _TURN * (2 * torch.rand(count) - 1)
    scale = 1 + _SCALE * (2 * torch.rand(count) - 1)
    across, down = _SHIFT * (2 * torch.rand(2, count) - 1)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cosine, -sine, across], -1), torch.stack([sine, cosine, down], -1)]
    grid = torch.nn.functional.affine_grid(torch.stack(rows, 1), pixels.shape, align_corners=False)
    # Zero is what lies outside of the image, and paper is -1.
    return torch.nn.functional.grid_sample(pixels + 1, grid, align_corners=False) - 1
