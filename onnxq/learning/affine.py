"""A block whose activations are mapped before they are rounded, and whose weights map them back.

For the sites that read a value x, with rows w, and free s > 0 and invertible P,

    x wᵀ = x′ w′ᵀ      x′ = (x ∘ s) P      w′ = (w ∘ 1/s) P⁻ᵀ

and what is learned is for which s, P the rounded x′ and w′ give the best product. The share of the
range of x′ that is kept when it is rounded is learned beside them. It starts from the balance of
SmoothQuant (Xiao et al., arXiv:2211.10438, eq. 4), s = max|w|^(1−a) / max|x|^a, as FlatQuant does
(Sun et al., arXiv:2410.09426, section 3.1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

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
    """

    weight: str
    is_transposed: bool

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
        clip_logit: parameter, a number; None when nothing is clipped.
    """

    def __init__(
        self,
        name: str,
        readers: Sequence[Reader],
        *,
        ids: npt.NDArray[np.int64] | None = None,
        matrix: KroneckerMatrix | None = None,
    ) -> None:
        """Begin with s = 1.

        Args:
            name: of the value.
            readers: the weights that multiply it.
            ids: which factor each channel has, -1 for none; None leaves out s.
            matrix: P, with its starting point.
        """
        self.name, self.readers, self.matrix = name, tuple(readers), matrix
        self._ids = None if ids is None else torch.from_numpy(ids)
        count = 0 if ids is None else int(ids.max(initial=-1)) + 1
        self.log_factors = torch.zeros(count, requires_grad=count > 0)
        self.clip_logit: torch.Tensor | None = None
        self._largest: torch.Tensor | None = None

    def watch(self, x: torch.Tensor) -> torch.Tensor:
        """Note the largest magnitude of each channel; gives ``x`` itself."""
        found = x.detach().abs().reshape(-1, x.shape[-1]).amax(dim=0)
        self._largest = found if self._largest is None else torch.maximum(self._largest, found)
        return x

    def start(self, floats: Mapping[str, torch.Tensor], rates: AffineRates) -> None:
        """Take the starting values of s and of the clip."""
        if rates.clip_start < 1.0:
            logit = math.log(rates.clip_start / (1.0 - rates.clip_start))
            self.clip_logit = torch.tensor(logit, requires_grad=True)
        if self._ids is None or rates.balance is None or self._largest is None:
            return
        if not len(self.log_factors):
            return
        columns = [r.rows(floats[r.weight]).abs().amax(dim=0) for r in self.readers]
        widest = torch.stack(columns).amax(dim=0)
        log = (1.0 - rates.balance) * self._pooled(widest).clamp(min=1e-5).log()
        log = log - rates.balance * self._pooled(self._largest).clamp(min=1e-5).log()
        with torch.no_grad():
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
        """(x ∘ s) P."""
        if len(self.log_factors):
            x = x * torch.exp(self._spread())
        return x if self.matrix is None else self.matrix.apply(x)

    def folded(self, rows: torch.Tensor) -> torch.Tensor:
        """(w ∘ 1/s) P⁻ᵀ."""
        if len(self.log_factors):
            rows = rows * torch.exp(-self._spread())
        return rows if self.matrix is None else self.matrix.unapply_weight(rows)

    def _spread(self) -> torch.Tensor:
        """Log s by channel."""
        known = torch.cat([self.log_factors, self.log_factors.new_zeros(1)])
        return known[self._ids]

    def _pooled(self, values: torch.Tensor) -> torch.Tensor:
        """The largest of the channels that share a factor."""
        if self._ids is None:
            return values
        held = self._ids >= 0
        empty = torch.zeros(len(self.log_factors))
        return empty.scatter_reduce(0, self._ids[held], values[held], "amax")


class AffineLearner(Learner):
    """Learns the maps of all points of one block.

    Attributes:
        points: the values that are mapped.
    """

    def __init__(
        self,
        graph: TorchGraph,
        points: Sequence[AffinePoint],
        *,
        weights: WeightQuantizer,
        activations: TokenQuantizer,
        rates: AffineRates,
    ) -> None:
        """Learn on ``graph``; every reader of every point is rounded by ``weights``."""
        self.points = tuple(points)
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
            maps += [m for p in self.points if p.matrix is not None for m in p.matrix.parameters]
            clips = [p.clip_logit for p in self.points if p.clip_logit is not None]
            rates = ((maps, self._rates.matrix), (clips, self._rates.clip))
            self._groups = [{"params": found, "lr": rate} for found, rate in rates if found]
        return self._groups

    def setting(self, progress: float) -> Setting:
        """Points mapped and rounded, weights mapped back and rounded."""
        weights, taps = {}, {}
        for point in self.points:
            taps[point.name] = self._rounding(point)
            for reader in point.readers:
                rows = point.folded(reader.rows(self._floats[reader.weight]))
                weights[reader.weight] = reader.rows(self._weights(rows))
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
