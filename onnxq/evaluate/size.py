"""How large a model is: its files, and the bits it spends on a weight."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx_ir as ir

from onnxq.graph import is_weight, walk_weights, weight_tensor
from onnxq.graph.data_file import FileTensor
from onnxq.graph.reading import find_model_file
from onnxq.graph.sites import Site, find_sites

__all__ = ["WeightBits", "file_bytes", "weight_bits"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightBits:
    """Storage of the weights of all sites, embeddings included, each shared weight once.

    Attributes:
        weights: number of weights: entries of the matrices and kernels as the network uses them.
        nbytes: stored bytes of those and of everything their format needs: scales, zero points,
            codebooks, index tables; not biases.
    """

    weights: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float | None:
        """8 · nbytes / weights; None for a model without sites."""
        return 8 * self.nbytes / self.weights if self.weights else None


def weight_bits(model: ir.Model) -> WeightBits:
    """Count the storage of a model's weights; no weight data is read.

    The bytes of a site are those of its stored weight, of the other constants of the
    DequantizeLinear nodes before it, and, for integer and blocked operators, of the node's own
    constants except its bias. The scale of a MatMulInteger is multiplied by another node and is
    not counted (one number for each output feature).
    """
    counts: dict[ir.Value, int] = {}
    stored: dict[ir.Value, int] = {}
    for site in find_sites(model):
        if site.weight is None or _is_table(site):
            continue
        counts[site.weight] = _logical(site)
        for value in (site.weight, *_side_constants(site)):
            stored[value] = int(weight_tensor(value).nbytes)
    return WeightBits(weights=sum(counts.values()), nbytes=sum(stored.values()))


def _is_table(site: Site) -> bool:
    """Whether what the site reads are tables of an operation and not learned weights."""
    return site.is_embedding and site.refusal is not None


def file_bytes(path: str | Path, model: ir.Model) -> int:
    """Bytes of the model file and of every external data file it names.

    Args:
        path: the file or folder the model was loaded from.
        model: what `onnxq.graph.load` gave for it.
    """
    main = find_model_file(Path(path))
    files = {main.resolve()}
    for _, value in walk_weights(model):
        tensor = weight_tensor(value)
        if isinstance(tensor, FileTensor):
            files.add(Path(tensor.file.path).resolve())
    return sum(file.stat().st_size for file in files)


def _logical(site: Site) -> int:
    node, weight = site.node, site.weight
    size = 0 if weight is None else int(weight_tensor(weight).size)
    if site.kind in ("MatMulNBits", "MatMulBnb4") and "N" in node.attributes:
        return node.attributes["N"].as_int() * node.attributes["K"].as_int()
    if site.kind == "GatherBlockQuantized" and weight is not None:
        bits = node.attributes["bits"].as_int() if "bits" in node.attributes else 4
        # Codes below 8 bits are packed into bytes, unless the tensor's own type is that small.
        return size * 8 // bits if weight_tensor(weight).dtype.bitwidth == 8 else size
    return size


def _side_constants(site: Site) -> list[ir.Value]:
    nodes = [node for node in site.via if node.op_type == "DequantizeLinear"]
    values = [value for node in nodes for value in node.inputs[1:]]
    if site.already is not None and not nodes:
        values = [value for value in site.node.inputs if value is not site.bias]
    return [value for value in values if value is not None and is_weight(value)]
