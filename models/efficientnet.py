"""EfficientNet-lite0: ImageNet classes of photographs and of crops of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np

from onnxq.errors import MissingDependency
from onnxq.evaluate.classification import top1, top1_agreement
from onnxq.models.images import photo, resize
from onnxq.models.task import Feeds, Metrics, Models, Task
from onnxq.models.zoo import fetch
from onnxq.runtime import open_session

__all__ = ["EfficientNetLite0"]

_SIZE = 224
_KNOWN = {
    "chelsea.png": {281, 282, 285},  # tabby, tiger cat, Egyptian cat
    "coffee.png": {967, 968},  # espresso, cup
    "rocket.jpg": {657, 744},  # missile, projectile
    "camera.png": {872},  # tripod
    "china.jpg": {442, 663, 698},  # bell cote, monastery, palace
}
"""Evaluation photographs, and the ImageNet classes that name what they show."""

_CALIBRATION = (
    *("astronaut.png", "flower.jpg", "motorcycle_left.png", "motorcycle_right.png", "horse.png"),
    *("coins.png", "clock_motion.png", "hubble_deep_field.jpg", "grass.png", "gravel.png"),
    *("brick.png", "ihc.png", "retina.jpg", "moon.png", "text.png", "color.png"),
)


@dataclasses.dataclass(frozen=True)
class EfficientNetLite0(Task):
    """Image classification; judged by top-1 agreement with the source on 105 views of 5 photos.

    Attributes:
        crops: random crops of each evaluation photograph, beside its centre.
        calibration_crops: views of each of 16 other photographs.
    """

    name: ClassVar[str] = "efficientnet-lite0"
    title: ClassVar[str] = "EfficientNet-lite0 (ImageNet classifier)"
    primary: ClassVar[str] = "top1_agreement"
    tolerance: ClassVar[float | None] = 0.05

    crops: int = 20
    calibration_crops: int = 4

    def build(self, folder: Path) -> dict[str, Path]:
        """Load the weights into the family's definition and export it with a dynamic batch."""
        from onnxq.export.from_torch import from_torch

        try:
            import torch

            from onnxq.models.families.efficientnet_lite import (
                LITE0,
                EfficientNetLite,
                rename_checkpoint,
            )
        except ImportError as error:
            raise MissingDependency("torch", "torch", "Exporting EfficientNet") from error
        module = EfficientNetLite(LITE0).eval()
        path = fetch("efficientnet-lite0") / "efficientnet-lite0.pth"
        state = torch.load(path, weights_only=True, map_location="cpu")
        module.load_state_dict(rename_checkpoint(state))
        example = torch.from_numpy(_pixels(photo("coffee.png")))
        return from_torch(
            module,
            {"pixels": example},
            folder,
            dynamic_shapes={"pixels": {0: "batch"}},
            output_names=["logits"],
            task="image-classification",
            overwrite=True,
        ).models

    def calibration(self, models: Models) -> dict[str, list[Feeds]]:
        """64 views of 16 photographs that evaluation does not show."""
        views = [view for name in _CALIBRATION for view in _views(name, self.calibration_crops - 1)]
        return {"model": [{"pixels": view} for view in views]}

    def evaluate(self, models: Models, *, source: Models | None = None) -> Metrics:
        """Agreement with the source on all views, and the share of photos whose class is right."""
        logits = self._logits(models)
        reference = logits if source is None else self._logits(source)
        centres = top1(logits)[:: self.crops + 1]
        right = [int(best) in names for best, names in zip(centres, _KNOWN.values(), strict=True)]
        return {
            "top1_agreement": top1_agreement(logits, reference),
            "photos_right": float(sum(right)),
            "photos": float(len(right)),
            "views": float(len(logits)),
        }

    def held_back(self, models: Models) -> dict[str, list[Feeds]]:
        """The centres of four evaluation photographs."""
        return {"model": [{"pixels": _views(name, 0)[0]} for name in list(_KNOWN)[:4]]}

    def _logits(self, models: Models) -> np.ndarray:
        with open_session(models["model"]) as session:
            return np.concatenate(
                [
                    session.run({"pixels": view}, ["logits"])["logits"]
                    for name in _KNOWN
                    for view in _views(name, self.crops)
                ]
            )


def _pixels(image: np.ndarray) -> np.ndarray:
    """A square crop as the network takes it: float32 [1, 3, 224, 224], (value - 127) / 128."""
    small = resize(image, _SIZE, _SIZE).astype(np.float32)
    return np.ascontiguousarray((small.transpose(2, 0, 1)[None] - 127) / 128)


def _views(name: str, crops: int) -> list[np.ndarray]:
    """The largest centred square of a photograph, and random squares of 60 to 100 % of its side."""
    image = photo(name)
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    views = [_pixels(image[top : top + side, left : left + side])]
    generator = np.random.default_rng(sum(name.encode()))
    for _ in range(crops):
        part = int(side * generator.uniform(0.6, 1.0))
        top = int(generator.integers(0, height - part + 1))
        left = int(generator.integers(0, width - part + 1))
        view = _pixels(image[top : top + part, left : left + part])
        views.append(np.ascontiguousarray(view[..., ::-1]) if generator.random() < 0.5 else view)
    return views
