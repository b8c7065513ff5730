"""What the passes share that learn maps of activations block by block."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from onnxq.errors import RecipeError
from onnxq.formats import parse_integers
from onnxq.graph.stage import Stage
from onnxq.passes.base import Context
from onnxq.passes.float_transform import FloatTransform

__all__ = ["AffinePass"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AffinePass(FloatTransform):
    """A transform whose maps are learned such that rounded layers give what float layers gave.

    Attributes:
        weight_format: what the weights will be rounded to, an integer format such as
            ``int4_g64``; in learning they are rounded to nearest.
        activation_bits: what the activations will be rounded to, with a scale for each token.
        symmetric: activations are rounded without a zero point.
        steps: gradient steps for each layer; 0 leaves the model as it is.
        batch: samples for each step.
        samples: at most how many calibration samples are learned on, the first ones.
        rate: learning rate of the maps; clips learn at ten times this rate.
        balance: exponent of SmoothQuant that scales start from, 0 to 1.
        clip: learn what share of the range of an activation is kept; it is recorded for
            `quantize_activations`.
        inputs: what a layer is learned on: its inputs in the ``float`` model, or in the model
            ``quantized`` so far.
        exclude: name patterns of sites to leave alone.
        seed: of the order of samples, and of what starts at random.
        threads: of torch; with one thread the same bytes come out every time.
    """

    weight_format: str = "int4_g64"
    activation_bits: int = 4
    symmetric: bool = True
    steps: int = 40
    batch: int = 2
    samples: int = 16
    rate: float = 1e-2
    balance: float = 0.5
    clip: bool = True
    inputs: Literal["float", "quantized"] = "quantized"
    exclude: tuple[str, ...] = ()
    seed: int = 0
    threads: int = 1

    needs_stage: ClassVar[Stage] = Stage.FLOAT

    def __post_init__(self) -> None:
        """Refuse what no model could be run with, before any work."""
        parse_integers(self.weight_format)
        if not 2 <= self.activation_bits <= 8:
            raise RecipeError(f"activation_bits is {self.activation_bits}: it must be 2 to 8.")
        if not 0.0 <= self.balance <= 1.0:
            raise RecipeError(f"balance is {self.balance}: it is an exponent from 0 to 1.")
        if self.steps < 0 or self.batch < 1 or self.samples < 1 or self.rate <= 0.0:
            raise RecipeError("steps must not be negative; batch, samples and rate be above 0.")

    @property
    def needs_samples(self) -> bool:
        """Whether anything is learned."""
        return self.steps > 0

    def require_samples(self, context: Context) -> None:
        """Refuse to learn without data.

        Raises:
            CalibrationError: there are no samples.
        """
        context.needed_samples(
            f"{self.key()} learns on samples, and the recipe was run without data: give some "
            "(a folder of .npz files, texts, images or audio), or leave the pass out."
        )
