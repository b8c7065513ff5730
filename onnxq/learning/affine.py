"""A block whose activations are mapped before they are rounded, and whose weights map them back.

For the sites that read a value x, with rows w, and free s > 0 and invertible P,

    x wᵀ = x′ w′ᵀ + z wᵀ      x′ = ((x − z) ∘ s) P      w′ = (w ∘ 1/s) P⁻ᵀ

and what is learned is for which z, s, P the rounded x′ and w′ give the best product. The share of
the range of x′ that is kept when it is rounded is learned beside them. s starts from the balance of
SmoothQuant (Xiao et al., arXiv:2211.10438, eq. 4), s = max|w|^(1−a) / max|x|^a, as FlatQuant does
(Sun et al., arXiv:2410.09426, section 3.1), and z in the middle of the range of each channel.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from onnxq.learning.head_maps import HeadMap
from onnxq.learning.matrices import KroneckerMatrix
from onnxq.learning.quantizers import TokenQuantizer, WeightQuantizer
from onnxq.learning.torch_graph import Tap, TorchGraph
from onnxq.learning.training import Learner, Setting

__all__ = ["AffineLearner", "AffinePoint", "AffineRates", "Reader"]


@dataclasses.dataclass(frozen=True)
class Reader:
    """A stored weight that multiplies a point.

    Attributes:
        weight: its name.
        is_transposed: whether it is stored ``[inputs, outputs]`` and not as rows.
        result: name of the product, which a shift is added back to.
    """

    weight: str
    is_transposed: bool
    result: str = ""

    def rows(self, stored: torch.Tensor) -> torch.Tensor:
        """``[outputs, inputs]`` from the stored axes, and back."""
        return stored.T if self.is_transposed else stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class AffineRates:
    """Learning rates and starting points.

    Attributes:
        matrix: rate of P and of log s.
        clip: rate of the clip logits.
        balance: a in the module docstring; None starts with s = 1.
        clip_start: share of the range that is kept at the start, in (0, 1); 1 does not clip, and
            learns no clip.
    """

    matrix: float = 5e-3
    clip: float = 5e-2
    balance: float | None = 0.3
    clip_start: float = 0.95


class AffinePoint:
    """One value that is mapped, and the sites that read it.

    Attributes:
        name: of the value.
        readers: the weights that multiply it, each by this value alone.
        matrix: P; None is the identity.
        log_factors: parameter ``[factors]``, log s by factor.
        shift: parameter ``[factors]``, z by factor; None when nothing is subtracted.
        clip_logit: parameter, a number; None when nothing is clipped.
    """

    def __init__(
        self,
        name: str,
        readers: Sequence[Reader],
        *,
        ids: npt.NDArray[np.int64] | None = None,
        matrix: KroneckerMatrix | None = None,
        is_shifted: bool = False,
    ) -> None:
        """Begin with z = 0 and s = 1.

        Args:
            name: of the value.
            readers: the weights that multiply it.
            ids: which factor each channel has, -1 for none; None leaves out s.
            matrix: P, with its starting point.
            is_shifted: learn z; the channels have ids, and the readers name their results.
        """
        self.name, self.readers, self.matrix = name, tuple(readers), matrix
        self._ids = None if ids is None else torch.from_numpy(ids)
        count = 0 if ids is None else int(ids.max(initial=-1)) + 1
        self.log_factors = torch.zeros(count, requires_grad=count > 0)
        self.shift = torch.zeros(count, requires_grad=True) if is_shifted and count else None
        self.clip_logit: torch.Tensor | None = None
        self._highest: torch.Tensor | None = None
        self._lowest: torch.Tensor | None = None

    def watch(self, x: torch.Tensor) -> torch.Tensor:
        """Note the range of each channel; gives ``x`` itself."""
        rows = x.detach().reshape(-1, x.shape[-1])
        high, low = rows.amax(dim=0), rows.amin(dim=0)
        self._highest = high if self._highest is None else torch.maximum(self._highest, high)
        self._lowest = low if self._lowest is None else torch.minimum(self._lowest, low)
        return x

    def start(self, floats: Mapping[str, torch.Tensor], rates: AffineRates) -> None:
        """Take the starting values of z, s and the clip."""
        if rates.clip_start < 1.0:
            logit = math.log(rates.clip_start / (1.0 - rates.clip_start))
            self.clip_logit = torch.tensor(logit, requires_grad=True)
        if self._highest is None or self._lowest is None or not len(self.log_factors):
            return
        high, low = self._pooled(self._highest), -self._pooled(-self._lowest)
        largest = torch.maximum(high, -low)
        with torch.no_grad():
            if self.shift is not None:
                self.shift.copy_((high + low) / 2)
                largest = (high - low) / 2
            if rates.balance is not None:
                columns = [r.rows(floats[r.weight]).abs().amax(dim=0) for r in self.readers]
                widest = self._pooled(torch.stack(columns).amax(dim=0))
                log = (1.0 - rates.balance) * widest.clamp(min=1e-5).log()
                log = log - rates.balance * largest.clamp(min=1e-5).log()
                self.log_factors.copy_(log - log.mean())

    def factors(self) -> npt.NDArray[np.float64]:
        """S by factor."""
        return np.asarray(np.exp(self.log_factors.detach().numpy().astype(np.float64)))

    def share(self) -> torch.Tensor | float:
        """The share of the range that is kept."""
        return 1.0 if self.clip_logit is None else torch.sigmoid(self.clip_logit)

    def kept_share(self) -> float:
        """The share of the range that is kept, as a number."""
        return float(torch.as_tensor(self.share()).detach())

    def moved(self, x: torch.Tensor) -> torch.Tensor:
        """((x − z) ∘ s) P."""
        if self.shift is not None:
            x = x - self._spread(self.shift)
        if len(self.log_factors):
            x = x * torch.exp(self._spread(self.log_factors))
        return x if self.matrix is None else self.matrix.apply(x)

    def folded(self, rows: torch.Tensor) -> torch.Tensor:
        """(w ∘ 1/s) P⁻ᵀ."""
        if len(self.log_factors):
            rows = rows * torch.exp(-self._spread(self.log_factors))
        return rows if self.matrix is None else self.matrix.unapply_weight(rows)

    def returned(self, rows: torch.Tensor) -> torch.Tensor | None:
        """Z wᵀ, what a shift takes from the product of the rows; None without one."""
        return None if self.shift is None else rows @ self._spread(self.shift)

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        """From one number for each factor to one for each channel, 0 where it has none."""
        return torch.cat([values, values.new_zeros(1)])[self._ids]

    def _pooled(self, values: torch.Tensor) -> torch.Tensor:
        """The largest of the channels that share a factor."""
        if self._ids is None:
            return values
        held = self._ids >= 0
        empty = torch.full((len(self.log_factors),), -math.inf)
        return empty.scatter_reduce(0, self._ids[held], values[held], "amax")


class AffineLearner(Learner):
    """Learns the maps of all points of one block.

    Attributes:
        points: the values that are mapped.
        heads: the maps within the weights.
    """

    def __init__(
        self,
        graph: TorchGraph,
        points: Sequence[AffinePoint],
        *,
        weights: WeightQuantizer,
        activations: TokenQuantizer,
        rates: AffineRates,
        heads: Sequence[HeadMap] = (),
    ) -> None:
        """Learn on ``graph``; every reader of every point is rounded by ``weights``."""
        self.points, self.heads = tuple(points), tuple(heads)
        self._floats = graph.weights
        self._weights, self._activations, self._rates = weights, activations, rates
        self._groups: list[dict[str, Any]] | None = None

    def watch(self) -> Mapping[str, Tap]:
        """What notes the range of every point as the float block runs."""
        return {point.name: point.watch for point in self.points}

    def groups(self) -> list[dict[str, Any]]:
        """Maps and clips, each with its rate; at the first call they get their start."""
        if self._groups is None:
            for point in self.points:
                point.start(self._floats, self._rates)
            maps = [p.log_factors for p in self.points if len(p.log_factors)]
            maps += [p.shift for p in self.points if p.shift is not None]
            maps += [m for p in self.points if p.matrix is not None for m in p.matrix.parameters]
            maps += [m for head in self.heads for m in head.blocks.parameters]
            clips = [p.clip_logit for p in self.points if p.clip_logit is not None]
            rates = ((maps, self._rates.matrix), (clips, self._rates.clip))
            self._groups = [{"params": found, "lr": rate} for found, rate in rates if found]
        return self._groups

    def setting(self, progress: float) -> Setting:
        """Points mapped and rounded, weights mapped back and rounded."""
        weights: dict[str, torch.Tensor] = {}
        taps: dict[str, Tap] = {}
        for head in self.heads:
            weights |= head.moved(self._floats, progress)
        floats = {**self._floats, **weights}
        for point in self.points:
            taps[point.name] = self._rounding(point)
            for reader in point.readers:
                rows = reader.rows(floats[reader.weight])
                weights[reader.weight] = reader.rows(self._weights(point.folded(rows)))
                returned = point.returned(rows)
                if returned is not None:
                    taps[reader.result] = functools.partial(torch.add, returned)
        return Setting(weights, taps)

    def plain(self) -> Setting:
        """Points and weights rounded as they are."""
        weights = {
            reader.weight: reader.rows(self._weights(reader.rows(self._floats[reader.weight])))
            for point in self.points
            for reader in point.readers
        }
        return Setting(weights, {point.name: self._activations for point in self.points})

    def _rounding(self, point: AffinePoint) -> Tap:
        share = point.share()
        return lambda x: self._activations(point.moved(x), share)
