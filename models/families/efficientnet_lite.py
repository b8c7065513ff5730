"""EfficientNet-Lite: EfficientNet (Tan and Le, ICML 2019) without squeeze-excitation, with ReLU6.

The variant that integer hardware was meant for: ReLU6 bounds every activation. Convolutions of
stride 2 pad as TensorFlow does (one more on the right and below), as the weights were trained.
"""

# mypy: disallow-subclassing-any=False
# torch is not followed by the type checker, so that its modules are of type Any there.

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

__all__ = ["LITE0", "EfficientNetLite", "LiteConfig", "Stage", "rename_checkpoint"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run of inverted bottlenecks.

    Attributes:
        repeats: number of blocks; only the first one strides.
        kernel: side of the depthwise kernel.
        stride: of the first block.
        expand: channels inside a block, as a multiple of its input's.
        channels: output channels.
    """

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


@dataclasses.dataclass(frozen=True)
class LiteConfig:
    """Sizes of a network; the image is square."""

    stages: tuple[Stage, ...]
    image: int = 224
    stem: int = 32
    head: int = 1280
    classes: int = 1000


LITE0 = LiteConfig(
    stages=(
        Stage(1, 3, 1, 1, 16),
        Stage(2, 3, 2, 6, 24),
        Stage(2, 5, 2, 6, 40),
        Stage(3, 3, 2, 6, 80),
        Stage(3, 5, 1, 6, 112),
        Stage(4, 5, 2, 6, 192),
        Stage(1, 3, 1, 6, 320),
    )
)
"""4.65 M parameters, 224 × 224 pixels."""

_BATCH_NORM_EPSILON = 1e-3


class _SamePad(nn.Module):
    """Zeros around an image of even size so that a strided convolution halves it exactly."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        total = kernel - stride
        before = total // 2
        self.pad = nn.ZeroPad2d((before, total - before, before, total - before))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded: torch.Tensor = self.pad(x)
        return padded


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_BATCH_NORM_EPSILON)


class InvertedBottleneck(nn.Module):
    """Expand 1 × 1, filter depthwise, project 1 × 1; a residual when the shape stays."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        """Make a block from ``inputs`` channels with the stage's sizes and its own stride."""
        super().__init__()
        inner = inputs * stage.expand
        self.expands = stage.expand != 1
        if self.expands:
            self.expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self.bn0 = _norm(inner)
        symmetric = stage.kernel // 2 if stride == 1 else 0
        self.pad = nn.Identity() if stride == 1 else _SamePad(stage.kernel, stride)
        self.depthwise_conv = nn.Conv2d(
            inner, inner, stage.kernel, stride, symmetric, groups=inner, bias=False
        )
        self.bn1 = _norm(inner)
        self.project_conv = nn.Conv2d(inner, stage.channels, 1, bias=False)
        self.bn2 = _norm(stage.channels)
        self.act = nn.ReLU6()
        self.residual = stride == 1 and inputs == stage.channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, inputs, h, w] → [batch, channels, h / stride, w / stride]."""
        y = self.act(self.bn0(self.expand_conv(x))) if self.expands else x
        y = self.act(self.bn1(self.depthwise_conv(self.pad(y))))
        y = self.bn2(self.project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """The whole classifier: float32 [batch, 3, image, image] → logits [batch, classes]."""

    def __init__(self, config: LiteConfig) -> None:
        """Make a network with random weights."""
        super().__init__()
        self.pad = _SamePad(3, 2)
        self.conv_stem = nn.Conv2d(3, config.stem, 3, 2, bias=False)
        self.bn0 = _norm(config.stem)
        self.blocks = nn.ModuleList()
        channels = config.stem
        for stage in config.stages:
            for number in range(stage.repeats):
                stride = stage.stride if number == 0 else 1
                self.blocks.append(InvertedBottleneck(channels, stage, stride))
                channels = stage.channels
        self.conv_head = nn.Conv2d(channels, config.head, 1, bias=False)
        self.bn1 = _norm(config.head)
        self.act = nn.ReLU6()
        self.fc = nn.Linear(config.head, config.classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Classify images; see the class for shapes."""
        x = self.act(self.bn0(self.conv_stem(self.pad(pixels))))
        for block in self.blocks:
            x = block(x)
        x = self.act(self.bn1(self.conv_head(x)))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def rename_checkpoint(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Map the names of the efficientnet_lite_pytorch package, which start with underscores."""
    return {name.replace("._", ".").lstrip("_"): tensor for name, tensor in state.items()}
