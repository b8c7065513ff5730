"""Photographs of the zoo as arrays, and pages of rendered text.

Images are uint8 [height, width, 3] in RGB. Reading and resizing is Pillow's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import MissingDependency, ZooError
from onnxq.models.zoo import fetch

__all__ = ["crop_quadrilateral", "photo", "read_image", "rendered_page", "resize", "to_array"]


def _pillow(module: str, purpose: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"PIL.{module}")
    except ImportError as error:
        raise MissingDependency("pillow", "media", purpose) from error


def to_array(image: Any) -> np.ndarray:
    """A Pillow image as uint8 [height, width, 3]; grey becomes RGB, transparency becomes white."""
    if image.mode in {"RGBA", "LA", "P"}:
        layers = image.convert("RGBA")
        white = _pillow("Image", "Reading an image").new("RGBA", layers.size, "white")
        image = _pillow("Image", "Reading an image").alpha_composite(white, layers)
    return np.asarray(image.convert("RGB"))


def read_image(path: Path) -> np.ndarray:
    """Read a file into uint8 [height, width, 3].

    Raises:
        ZooError: the file is not an image Pillow reads.
        MissingDependency: Pillow is not installed.
    """
    opener = _pillow("Image", "Reading an image")
    try:
        with opener.open(path) as image:
            return to_array(image)
    except (OSError, SyntaxError) as error:
        raise ZooError(f"{str(path)!r} is not an image that can be read: {error}.") from error


def photo(name: str) -> np.ndarray:
    """A picture of the zoo entries ``photos`` and ``digits`` by file name, e.g. ``coffee.png``."""
    entry = "digits" if name in {"china.jpg", "flower.jpg"} else "photos"
    return read_image(fetch(entry) / name)


def resize(image: np.ndarray, height: int, width: int, *, smooth: bool = True) -> np.ndarray:
    """Resample to another size: bicubic when ``smooth``, else bilinear; antialiased downwards."""
    pillow = _pillow("Image", "Resizing an image")
    method = pillow.Resampling.BICUBIC if smooth else pillow.Resampling.BILINEAR
    return np.asarray(pillow.fromarray(image).resize((width, height), method))


def crop_quadrilateral(image: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Cut a rectangle that may be turned out of an image, set upright.

    Args:
        image: uint8 [height, width, 3].
        corners: [4, 2] as (x, y): upper left, upper right, lower right, lower left.

    Returns:
        uint8 [h, w, 3] with the lengths of the rectangle's sides; a crop much taller than wide is
        turned by 90°, as text runs along the long side.
    """
    pillow = _pillow("Image", "Cropping an image")
    top_left, top_right, _, bottom_left = corners.astype(np.float64)
    width = max(1, int(np.linalg.norm(top_right - top_left)))
    height = max(1, int(np.linalg.norm(bottom_left - top_left)))
    along, down = (top_right - top_left) / width, (bottom_left - top_left) / height
    coefficients = (along[0], down[0], top_left[0], along[1], down[1], top_left[1])
    crop = pillow.fromarray(image).transform(
        (width, height), pillow.Transform.AFFINE, coefficients, pillow.Resampling.BICUBIC
    )
    array = np.asarray(crop)
    return np.rot90(array) if height >= 1.5 * width else array


def rendered_page(
    lines: Sequence[str], *, height: int, width: int, size: int, seed: int
) -> np.ndarray:
    """Set lines of text on uneven grey paper, as a scan looks.

    Args:
        lines: what to print, top to bottom.
        height: of the page in pixels.
        width: of the page in pixels.
        size: of the font in pixels.
        seed: of the shades and of the grain.

    Returns:
        uint8 [height, width, 3].
    """
    generator = np.random.default_rng(seed)
    paper, ink = generator.uniform(150, 240), generator.uniform(10, 70)
    shade = np.linspace(generator.uniform(0.7, 1), 1, width)[None] * np.ones((height, 1)) * paper
    pillow = _pillow("Image", "Rendering text")
    mask = pillow.new("L", (width, height), 0)
    font = _pillow("ImageFont", "Rendering text").load_default(size)
    draw = _pillow("ImageDraw", "Rendering text").Draw(mask)
    for number, line in enumerate(lines):
        draw.text((size // 2, size // 2 + number * round(1.6 * size)), line, fill=255, font=font)
    cover = np.asarray(mask) / 255
    grain = generator.normal(0, 3, (height, width))
    page = np.clip(shade * (1 - cover) + ink * cover + grain, 0, 255).astype(np.uint8)
    return np.repeat(page[:, :, None], 3, axis=2)
