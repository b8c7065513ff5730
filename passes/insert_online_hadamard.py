"""Rotate activations as they flow, where no rotation can be folded into the weights before them.

With H orthogonal, x W = (x H)(Hᵀ W): large channels of x are spread over all of them before they
are rounded. Two places have a nonlinearity in front that a folded rotation would not pass, and a
folded rotation does not reach what other people read too::

    r4   down(act(gate(x)) · up(x)):   h → Hadamard(h),   W_down → Hᵀ W_down
    r3   softmax(q kᵀ) after rotary embedding:   q → Hadamard(q),   k → Hadamard(k), head by head,
         because (q H)(k H)ᵀ = q kᵀ
    rest any other layer whose weight has rows far from Gaussian: x → Hadamard(x),   W → Hᵀ W

H is the rotation of `onnxq.numerics.hadamard` for the width: a Hadamard matrix / √n where one is
known. The node is ``onnxq.Hadamard`` (`onnxq.custom_ops.hadamard`), which every runtime can run and
which takes O(log n) additions for each number where the library of kernels is loaded.

Sources: QuaRot (Ashkboos et al., arXiv:2404.00456) rotates both places online; the names R3 and R4
are those of SpinQuant (Liu et al., arXiv:2405.16406).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.custom_ops.hadamard import hadamard_node, is_hadamard
from onnxq.errors import RecipeError
from onnxq.graph.attention import AttentionBlock
from onnxq.graph.names import names_held
from onnxq.graph.opset import ensure_opset, infer_shapes
from onnxq.graph.site_slots import integer
from onnxq.graph.sites import Site
from onnxq.graph.topology import Topology
from onnxq.graph.weights import read_weight, replace_weight, weight_tensor
from onnxq.numerics.hadamard import factor_size, fast_apply
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.channel_labels import Labels
from onnxq.passes.float_transform import FloatTransform
from onnxq.passes.hadamard_attention import kept_keys, rotate_attention
from onnxq.passes.rotation_space import filled_inputs
from onnxq.passes.rotation_weights import turned
from onnxq.passes.site_patterns import recipe_refusal

__all__ = ["InsertOnlineHadamard"]

Place = Literal["r3", "r4", "rest"]
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_OPSET = 15
_KURTOSIS = 4.0
"""Of the rows of a weight, 3 where they are Gaussian: beyond it they are taken as not rotated."""
_PART = 1024
"""Rows looked at at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InsertOnlineHadamard(FloatTransform):
    """Put a Hadamard rotation before the last layer of each MLP, behind q and k, and elsewhere.

    Matches: MatMul and Gemm that end a feed-forward block, plain or gated; the queries and keys
        of Attention, MultiHeadAttention and GroupQueryAttention (whose rotary embedding is taken
        out of it, into nodes of its own), and of attention written out as MatMul and Softmax. For
        ``rest`` any other MatMul and Gemm whose weight has rows with a mean kurtosis above 4, such
        as what reads an output of the model, which cannot be rotated.
    Writes: ``onnxq.Hadamard`` nodes with the function that defines them; the weight behind a
        rotated MLP activation, multiplied by Hᵀ.
    Leaves: weights that are shared, computed or quantized; activations that are rotated already,
        or of another type than float32 and float16; keys that go to a cache, unless
        ``rotate_cache``; attention that projects or adds biases inside; bodies and functions.

    Attributes:
        which: the places: ``r4`` before the last layer of MLPs, ``r3`` behind q and k, ``rest``
            before other layers that no rotation has reached: run it after those that are folded.
        sites: name patterns: for r4 and rest of the layers, for r3 of the attention
            operators.
        exclude: name patterns of what is left as it is.
        rotate_cache: also rotate keys that a key-value cache holds. The function of the tokens is
            the same when the cache is only fed back, but ``present`` outputs hold rotated keys.
    """

    which: tuple[Place, ...] = ("r3", "r4")
    sites: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    rotate_cache: bool = False

    def requires(self, model: ir.Model) -> None:
        """Refuse a model that is calibrated or quantized, and places that do not exist.

        Raises:
            UnsupportedGraph: the model is calibrated or later.
            RecipeError: ``which`` names nothing, or something else than its places.
        """
        super().requires(model)
        if not self.which or set(self.which) - set(get_args(Place)):
            raise RecipeError(
                f"insert_online_hadamard.which is {list(self.which)}: give some of 'r3', 'r4' and "
                "'rest'."
            )

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Insert in place; every MLP and attention block gets a row in the report."""
        converted = ensure_opset(model, _OPSET)
        infer_shapes(model)
        topology = Topology(model)
        rows: list[SiteReport] = []
        moved: list[str] = []
        filled = filled_inputs(context.samples)
        with names_held(model.graph):
            if "r4" in self.which:
                rows += [self._at_layer(model, topology, site) for site in _last_layers(topology)]
            for block in topology.attention if "r3" in self.which else ():
                rows.append(self._at_attention(model, block, filled))
                moved += kept_keys(block) if rows[-1].reason is None else ()
            if "rest" in self.which:
                rows += [self._at_layer(model, topology, site) for site in _rest(topology)]
        modified = converted or any(row.reason is None for row in rows)
        return PassReport(modified=modified, sites=tuple(rows), moved_outputs=tuple(moved))

    def _at_layer(self, model: ir.Model, topology: Topology, site: Site) -> SiteReport:
        reason = self._unwanted(site.name) or _refusal(topology, site)
        if reason is not None or site.input is None or site.weight is None:
            return SiteReport(site=site.name, reason=reason or "it has no weight")
        width = site.shape[site.in_axis]
        node = _reads_rotated(site)
        if node is None:
            node = hadamard_node(model, site.input, width, name=f"{site.node.name}_hadamard")
            if site.node.graph is not None:
                site.node.graph.insert_before(site.node, node)
        site.node.replace_input_with(1 - site.weight_index, node.outputs[0])
        _rotate(site.weight, site.in_axis, width)
        return SiteReport(site=site.name, note=f"its input is rotated by {factor_size(width)}")

    def _at_attention(self, model: ir.Model, block: AttentionBlock, filled: set[str]) -> SiteReport:
        reason = self._unwanted(block.name)
        if reason is not None:
            return SiteReport(site=block.name, reason=reason)
        return rotate_attention(model, block, rotate_cache=self.rotate_cache, filled=filled)

    def _unwanted(self, name: str) -> str | None:
        return recipe_refusal(name, sites=self.sites, exclude=self.exclude)


def _last_layers(topology: Topology) -> Sequence[Site]:
    """The last layers of MLPs, and sites behind a rotation that is there already."""
    last = {block.down for block in topology.mlps}
    return [
        site
        for site in topology.sites
        if site in last or (site.input is not None and is_hadamard(site.input.producer()))
    ]


def _rest(topology: Topology) -> Sequence[Site]:
    """Other layers that can be rotated, with rows far from Gaussian."""
    last = set(_last_layers(topology))
    others = [site for site in topology.sites if site not in last]
    return [site for site in others if _refusal(topology, site) is None and _is_spiky(site)]


def _is_spiky(site: Site) -> bool:
    if site.weight is None or site.via:
        return False
    rows = np.moveaxis(read_weight(site.weight), site.in_axis, -1)
    fourth = []
    for first in range(0, len(rows), _PART):
        squares = np.square(rows[first : first + _PART], dtype=np.float32)
        power = squares.mean(axis=-1)
        mean = np.square(squares).mean(axis=-1)
        fourth.append(np.divide(mean, power**2, out=np.zeros_like(mean), where=power > 0))
    return bool(np.concatenate(fourth).mean() > _KURTOSIS)


def _reads_rotated(site: Site) -> ir.Node | None:
    """A rotation of the same input that is there for another layer, and before this one."""
    if site.input is None:
        return None
    readers = [use for use in site.input.consumers() if is_hadamard(use)]
    return next((use for use in readers if use.graph is site.node.graph), None)


def _refusal(topology: Topology, site: Site) -> str | None:
    """Why the input of a layer cannot be rotated; None when it can."""
    if site.already is not None:
        return f"it is already quantized ({site.already})"
    if site.refusal is not None:
        return site.refusal
    if site.path:
        return "it is inside a body or function: inline functions first"
    if site.kind not in ("MatMul", "Gemm") or site.weight is None or site.input is None:
        return f"{site.kind} does not multiply the last axis of its input by a plain weight"
    if site.weight_index != 1 or integer(site.node, "transA"):
        return "its weight multiplies from the left, or the channels are not the last axis"
    if is_hadamard(site.input.producer()):
        return "its input is rotated already"
    if site.input.dtype is None and site.weight.dtype is not None:
        site.input.dtype = site.weight.dtype  # behind an operator that inference does not know
    if site.input.dtype not in _FLOATS:
        return f"its input {site.input.name!r} is {site.input.dtype}, not float32 or float16"
    shared = topology.shared(site)
    if shared.is_shared:
        other = shared.sites[0].name if shared.sites else shared.nodes[0].name
        return f"its weight {site.weight.name!r} is shared with {other!r}: run untie_weights first"
    return None


def _rotate(weight: ir.Value, axis: int, width: int) -> None:
    """W → Hᵀ W along its input channels: each of its columns w becomes wᵀ H, when it is read."""
    tensor = weight_tensor(weight)
    stored = ir.Value(name=weight.name, const_value=tensor)
    labels = Labels((axis,), np.arange(width))

    def compute() -> npt.NDArray[np.generic]:
        return turned(read_weight(stored), labels, width, [fast_apply])

    replace_weight(
        weight,
        shape=[int(size) for size in tensor.shape.numpy()],
        dtype=tensor.dtype,
        compute=compute,
    )
