"""Where the scale of an activation can move into the weights that read it, and moving it there.

For any positive s, one number for each channel, a linear layer and what comes before it satisfy

    W x  =  (W diag(s)) (diag(1/s) x),        diag(1/s) x = the same network with its producer ÷ s

when 1/s can be folded into whatever gives x: the scale and bias of a norm, the rows of the layer
before (through ReLU, through the product of a gated MLP into ``up``, through attention into the
value projection, where the query heads of one key-value head share their factors), or a constant
factor. SmoothQuant (Xiao et al., arXiv:2211.10438), AWQ (Lin et al., arXiv:2306.00978),
Outlier Suppression+ (Wei et al., arXiv:2304.09145) and RepQ-ViT (Li et al., arXiv:2212.08254)
choose s; this module only says where there is a choice, and writes it.

A `Migration` is found with the walk that also moves channels about (`channel_region`), with the
rules of `migration_rules`: all activations between producer and readers are divided together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.errors import UnsupportedGraph
from onnxq.graph.opset import infer_shapes
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.stage import Stage, stage_of
from onnxq.graph.walk import site_name
from onnxq.passes.channel_attention import ATTENTION
from onnxq.passes.channel_labels import FIXED, Ids, Labels, Leave, along
from onnxq.passes.channel_region import Options, Region
from onnxq.passes.migration_rules import FACTORS_OF, follow_scale
from onnxq.passes.migration_weights import ScaledWeights

__all__ = ["Migration", "Migrations", "Producer", "find_migrations", "refuse_calibrated",
           "scale_channels"]  # fmt: skip

Factors = npt.NDArray[np.float64]

_KINDS = frozenset(["MatMul", "Gemm", "FusedMatMul", "Conv", "ConvTranspose", "Attention"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Producer:
    """Something whose stored weight gives channels of an activation.

    Attributes:
        kind: ``norm``, ``linear`` (any layer or embedding), or ``factor`` (a constant in a
            product, such as the scale of a norm that is written as arithmetic).
        name: of its node.
        node: the node.
    """

    kind: str
    name: str
    node: ir.Node


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Migration:
    """One set of factors that may be chosen freely, and who takes part.

    Attributes:
        value: the activation through which it was found.
        readers: every site whose input columns are multiplied, in graph order: q, k and v
            together, gate and up together.
        producers: what is divided.
        count: the number of factors. Channels that have to scale alike have one together.
        region: the walk that found it: labels of every value that is divided.
    """

    value: ir.Value
    readers: tuple[Site, ...]
    producers: tuple[Producer, ...]
    count: int
    region: Region

    @property
    def kind(self) -> str:
        """``norm``, ``linear`` or ``factor`` when all producers are; else ``mixed``."""
        kinds = {producer.kind for producer in self.producers}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @property
    def caches(self) -> tuple[str, ...]:
        """Names of the model outputs through which a key-value cache shows divided values."""
        nodes = dict.fromkeys(v.producer() for v in self.region.labels if v.producer() is not None)
        shown = [
            node.outputs[1 if node.op_type == "Attention" and node.domain else 2 :][:1]
            for node in nodes
            if node is not None and node.op_type in ATTENTION
        ]
        return tuple(v.name or "" for outs in shown for v in outs if v.is_graph_output())

    def channels(self, site: Site) -> Ids:
        """The factor of each input channel of a reader, int64 [channels]; -1 where it has none."""
        if site.input is None:
            raise ValueError(f"site {site.name!r} reads nothing")
        axis = self.region.readers[site]
        return along(self.region.labels[site.input], axis, site.node)

    def axis(self, site: Site) -> int:
        """The axis of a reader's input along which its channels lie, from the end."""
        return self.region.readers[site]

    def matrices(self) -> list[tuple[ir.Value, str, Labels]]:
        """The weights of layers that take part, and where the channels lie in them.

        Each comes with ``out``, when it gives the channels and is divided, or ``in``, when it
        reads them and is multiplied.
        """
        weights = self.region.weights
        return weights.matrices() if isinstance(weights, ScaledWeights) else []

    def pool(
        self,
        site: Site,
        values: npt.ArrayLike,
        over: np.ufunc = np.maximum,
        start: float = 0.0,
    ) -> npt.NDArray[np.float64]:
        """Bring numbers for each input channel of a reader to one for each factor.

        Args:
            site: one of the readers.
            values: [channels].
            over: how numbers of channels that share a factor are joined.
            start: what they are joined to.

        Returns:
            float64 [count]; ``start`` for factors that no channel of this reader has.
        """
        ids = self.channels(site)
        pooled = np.full(self.count, start)
        held = ids != FIXED
        over.at(pooled, ids[held], np.asarray(values, dtype=np.float64)[held])
        return pooled

    def spread(self, site: Site, factors: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The factor of each input channel of a reader, float64 [channels]; 1 where none."""
        return np.asarray(np.append(np.asarray(factors, np.float64), 1.0)[self.channels(site)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Migrations:
    """What `find_migrations` found.

    Attributes:
        found: in the order of their first readers.
        refused: by name of every other site that multiplies an activation, why its scale stays.
    """

    found: tuple[Migration, ...]
    refused: Mapping[str, str]

    def of(self, site: Site) -> Migration | None:
        """The migration whose readers include the site, by its node."""
        return next((m for m in self.found if any(r.node is site.node for r in m.readers)), None)


def find_migrations(
    model: ir.Model,
    *,
    through_cache: bool = False,
    wants: Callable[[Site], str | None] = lambda site: None,
) -> Migrations:
    """Find every activation of the main graph whose scale can move into the weights around it.

    Shapes are inferred; nothing else of the model is touched.

    Args:
        model: the model; run the ``fuse_*`` passes first where norms are to be recognised.
        through_cache: also scale value channels that a key-value cache holds. The function of the
            tokens is the same when the cache is only fed back, but ``present`` outputs change.
        wants: why a site is to keep its input as it is, or None; a migration with such a reader
            is refused as a whole.

    Raises:
        UnsupportedGraph: the model is calibrated or quantized already.
    """
    refuse_calibrated(model, "moving scales")
    infer_shapes(model)
    sites = find_sites(model)
    by_node = {site.node: site for site in sites}
    known: dict[ir.Value, Migration | str] = {}
    found: dict[Migration, None] = {}
    refused: dict[str, str] = {}
    for site in sites:
        if site.kind not in _KINDS or site.is_embedding or site.input is None:
            continue
        reason = _refusal(site)
        if reason is None and site.input not in known:
            outcome = _grown(site, by_node, through_cache)
            if isinstance(outcome, Migration):
                inputs = [reader.input for reader in outcome.readers]
                outcome = _unwanted(outcome, wants) or outcome
                known.update((value, outcome) for value in inputs if value is not None)
            known[site.input] = outcome
        result = reason if reason is not None else known[site.input]
        if isinstance(result, str):
            refused[site.name] = result
        else:
            found[result] = None
    return Migrations(found=tuple(found), refused=refused)


def scale_channels(model: ir.Model, migration: Migration, factors: npt.ArrayLike) -> None:
    """Divide the activation by ``factors`` and multiply the columns that read it.

    Weights keep their type; they are computed in float64 when the model is saved.

    Args:
        model: the model the migration was found in.
        migration: one of `find_migrations`.
        factors: [count], positive and finite.

    Raises:
        ValueError: the factors are not of that shape, or not positive and finite.
    """
    given = np.asarray(factors, dtype=np.float64)
    if given.shape != (migration.count,) or not (np.isfinite(given) & (given > 0)).all():
        raise ValueError(
            f"factors of {migration.value.name!r} must be {migration.count} positive numbers"
        )
    weights = migration.region.weights
    if isinstance(weights, ScaledWeights):
        weights.scale(model, given)


def refuse_calibrated(model: ir.Model, what: str) -> None:
    """Raise `UnsupportedGraph` when the model is calibrated or later: ranges would be stale."""
    stage = stage_of(model)
    if stage >= Stage.CALIBRATED:
        raise UnsupportedGraph(
            f"{what} changes the activations, and this model is already {stage.name}: what was "
            "measured or rounded would not fit any more. Put the transform before calibration "
            "and quantization in the recipe."
        )


def _refusal(site: Site) -> str | None:
    if site.already is not None:
        return f"it is already quantized ({site.already})"
    if site.refusal is not None:
        return site.refusal
    if site.path:
        return "it is inside a body or function, whose activations cannot be measured"
    return None


def _unwanted(migration: Migration, wants: Callable[[Site], str | None]) -> str | None:
    for site in migration.readers:
        reason = wants(site)
        if reason is not None:
            same = "" if len(migration.readers) == 1 else f" (of {site.name!r}, which shares it)"
            return f"{reason}{same}"
    return None


def _grown(site: Site, by_node: Mapping[ir.Node, Site], through_cache: bool) -> Migration | str:
    """Follow the input channels of a site as far as their factors go."""
    options = Options(across_norms=False, permute_cache=through_cache, cache_option="through_cache")
    region = Region(options, by_node, follow_scale)
    region.weights = weights = ScaledWeights(by_node)
    axis = 1 - len(site.shape) if site.kind in ("Conv", "ConvTranspose") else -1
    if site.weight_index == 0:
        axis = -2
    is_depthwise = site.kind == "Conv" and site.groups > 1
    count = site.groups if is_depthwise else site.shape[site.in_axis]
    if site.input is None:
        return "it has no input"
    try:
        region.grow(site.input, axis, count)
    except Leave as left:
        return f"its scale cannot move: {left}"
    return Migration(
        value=site.input,
        readers=tuple(region.readers),
        producers=_producers(weights.writers),
        count=region.count,
        region=region,
    )


def _producers(writers: Sequence[ir.Node]) -> tuple[Producer, ...]:
    found = []
    for node in writers:
        kind = "norm" if node.op_type in FACTORS_OF else "linear"
        if node.op_type in ("Mul", "Div", "Concat"):
            kind = "factor"
        found.append(Producer(kind=kind, name=site_name("", node), node=node))
    return tuple(found)
