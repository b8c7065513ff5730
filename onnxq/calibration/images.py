"""Samples from a folder of images and a preprocessing spec."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxq.calibration.fields import from_table, read_table
from onnxq.calibration.samples import Sample, Samples
from onnxq.errors import CalibrationError, MissingDependency
from onnxq.runtime import TensorSpec

__all__ = ["IMAGE_SUFFIXES", "ImageSpec", "image_folder", "image_spec"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"})

_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # as Pillow numbers them


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """How a picture becomes the input of a model: resize, crop, scale, normalize, lay out.

    Attributes:
        size: height and width that the model sees; None takes them from the model.
        resize: the shorter side is scaled to this, and ``size`` cropped from the centre; None
            scales both sides to ``size``.
        mean: subtracted per channel, after scaling.
        std: divided by per channel, after ``mean`` was subtracted.
        scale: factor on the bytes 0 to 255.
        layout: ``NCHW`` or ``NHWC``.
        dtype: of the input.
        channels: ``RGB``, ``BGR`` or ``L`` (grey).
        filter: of the resampling: nearest, lanczos, bilinear, bicubic, box or hamming.
        input: name of the model's input; None when it has one input.
    """

    size: tuple[int, int] | None = None
    resize: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: str = "float32"
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    filter: str = "bilinear"
    input: str | None = None

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        for field, allowed in (
            ("layout", ("NCHW", "NHWC")),
            ("channels", ("RGB", "BGR", "L")),
            ("filter", _FILTERS),
            ("dtype", ("float32", "float16", "uint8")),
        ):
            if getattr(self, field) not in allowed:
                raise CalibrationError(
                    f"An image spec has {field} = {getattr(self, field)!r}: choose one of "
                    f"{', '.join(allowed)}."
                )
        if 0 in self.std:
            raise CalibrationError("An image spec has a std of 0: pixels are divided by it.")


def image_spec(path: Path) -> ImageSpec:
    """Read a spec from TOML or JSON; ``preprocessor_config.json`` of Hugging Face is taken too.

    Raises:
        CalibrationError: the file cannot be read, or has unknown keys.
    """
    table = read_table(path)
    if "image_mean" in table or "image_processor_type" in table:
        table = _from_processor(table)
    return from_table(ImageSpec, table, path.name)


def _from_processor(table: dict[str, Any]) -> dict[str, Any]:
    """The settings of a transformers image processor in our words."""
    size = table.get("size", {})
    size = {"height": size, "width": size} if isinstance(size, int) else size
    crop = table.get("crop_size", {}) if table.get("do_center_crop", False) else {}
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    final = crop or size
    spec: dict[str, Any] = {"resize": size.get("shortest_edge")}
    if "height" in final:
        spec["size"] = (final["height"], final["width"])
    if table.get("do_normalize", True):
        spec["mean"], spec["std"] = table.get("image_mean", [0.0]), table.get("image_std", [1.0])
    spec["scale"] = table.get("rescale_factor", 1 / 255) if table.get("do_rescale", True) else 1.0
    spec["filter"] = _FILTERS[table.get("resample", 2)]
    return spec


def image_folder(folder: Path, spec: ImageSpec, inputs: Sequence[TensorSpec]) -> Samples:
    """One sample of batch 1 per image, in the order of the file names.

    Args:
        folder: holds images (png, jpeg, bmp, webp, gif, tiff); other files are left aside.
        spec: the preprocessing.
        inputs: the inputs of the model.

    Raises:
        CalibrationError: the model's input is not told, or its size is dynamic and the spec tells
            none; while iterating, when a file is no image.
        MissingDependency: Pillow is not installed.
    """
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingDependency("pillow", "media", "Reading images") from error
    target = _target(spec, inputs)
    height, width = spec.size or _static_size(spec, target)
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)

    def read(file: Path) -> Sample:
        try:
            with PIL.Image.open(file) as image:
                pixels = _pixels(image, spec, height, width)
        except (OSError, ValueError, SyntaxError) as error:
            raise CalibrationError(
                f"{file.name!r} cannot be read as an image ({error}): take it out of the folder."
            ) from error
        return {target.name: _normalized(pixels, spec)}

    return Samples(lambda: map(read, files), label=f"folder {folder.name!r}")


def _target(spec: ImageSpec, inputs: Sequence[TensorSpec]) -> TensorSpec:
    for candidate in inputs:
        if candidate.name == spec.input or (spec.input is None and len(inputs) == 1):
            return candidate
    raise CalibrationError(
        f"The image spec does not tell which input takes the image: set input to one of "
        f"{', '.join(repr(candidate.name) for candidate in inputs)}."
    )


def _static_size(spec: ImageSpec, target: TensorSpec) -> tuple[int, int]:
    dims = target.shape[-2:] if spec.layout == "NCHW" else target.shape[-3:-1]
    if len(dims) == 2 and isinstance(dims[0], int) and isinstance(dims[1], int):
        return dims[0], dims[1]
    raise CalibrationError(
        f"Input {target.name!r} has shape {list(target.shape)}: height and width are dynamic where "
        "a static size is needed to resize images. Set size = [height, width] in the image spec."
    )


def _pixels(image: Any, spec: ImageSpec, height: int, width: int) -> np.ndarray:
    """Bytes ``[height, width, channels]``."""
    image = image.convert("L" if spec.channels == "L" else "RGB")
    resample = _FILTERS.index(spec.filter)
    if spec.resize is None:
        image = image.resize((width, height), resample)
    else:
        factor = spec.resize / min(image.size)
        image = image.resize([max(round(side * factor), 1) for side in image.size], resample)
        left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return pixels[:, :, ::-1] if spec.channels == "BGR" else pixels


def _normalized(pixels: np.ndarray, spec: ImageSpec) -> np.ndarray:
    if spec.dtype == "uint8":
        array = pixels
    else:
        mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
        array = (pixels * np.float32(spec.scale) - mean) / std
    if spec.layout == "NCHW":
        array = array.transpose(2, 0, 1)
    return np.ascontiguousarray(array[None], dtype=spec.dtype)
