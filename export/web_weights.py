"""A model whose weights a page decodes before it loads it, one after the other.

A browser downloads weights of few bits, and multiplies by them in float32. Left to itself ONNX
Runtime either decodes them in every run, or folds them when it loads the model and holds all that
lies between until the last one is done: 3.2 GB for SmolLM2 at two bits. Here what a weight is
computed by becomes a small model of its own, a decoder, which weights of one shape share; stored
arrays are its inputs, and what it gives is external data of the model that runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from onnxq.export.web_constants import computed_constants
from onnxq.export.web_form import spell_out_blocks
from onnxq.graph import clone_model, read_weight, save
from onnxq.graph.walk import OPERATOR_DOMAIN
from onnxq.graph.weights import weight_tensor
from onnxq.runtime import open_session

__all__ = ["split_weights"]

ARRAYS = "weights.bin"
_LEAST = 4096
"""Bytes from which on a constant is decoded by the page, and an array is an input of a decoder."""
_LINE = 64
_TYPES = ("float32", "float16", "float64", "uint8", "int8", "uint16", "int16", "int32", "int64")
"""Of arrays that a page hands to a decoder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Decoder:
    """What computes weights of one shape.

    Attributes:
        file: its name.
        shape: of a weight.
        dtype: of a weight.
        nbytes: of a weight.
    """

    file: str
    shape: tuple[int, ...]
    dtype: ir.DataType
    nbytes: int


def split_weights(model: ir.Model, path: Path) -> dict[str, Any] | None:
    """Write a model, the decoders of its weights and their arrays.

    Args:
        model: left as it is.
        path: the file of the model that runs; the others are put beside it.

    Returns:
        What a page needs to decode them: ``arrays``, the name of a file, and ``weights``, for each
        the ``decoder``, its ``inputs`` in order (type, dims, offset, bytes) and the ``path`` of the
        external data that it gives. None when there is nothing to decode.
    """
    whole = clone_model(model)
    spell_out_blocks(whole)
    InlinePass(criteria=lambda function: function.domain == OPERATOR_DOMAIN)(whole)
    decoders: dict[str, _Decoder | None] = {}
    weights: list[dict[str, Any]] = []
    given: list[tuple[ir.Value, _Decoder]] = []
    places: dict[ir.Value, dict[str, Any]] = {}
    with (path.parent / ARRAYS).open("wb") as file:
        for value in computed_constants(whole, _LEAST):
            leaves, part = _part_of(whole, value)
            decoder = _decoder_of(part, leaves, path.parent, decoders)
            if decoder is None:
                continue
            given.append((value, decoder))
            for leaf in leaves:
                if leaf not in places:
                    places[leaf] = _stored(file, leaf)
            weights.append(
                {
                    "decoder": decoder.file,
                    "inputs": [places[leaf] for leaf in leaves],
                    "path": f"decoded-{len(weights)}",
                }
            )
    if not weights:
        (path.parent / ARRAYS).unlink()
        save(model, path)
        return None
    _save_running(whole, given, [weight["path"] for weight in weights], path)
    return {"arrays": ARRAYS, "weights": weights}


def _part_of(model: ir.Model, value: ir.Value) -> tuple[list[ir.Value], ir.Model]:
    """The arrays that a value is computed from, and the model that computes it.

    Its names do not depend on where in the whole model the value is.
    """
    nodes = _ancestors(value)
    names: dict[ir.Value, ir.Value] = {}
    leaves: list[ir.Value] = []
    inputs: list[ir.Value] = []
    small: list[ir.Value] = []
    copies: list[ir.Node] = []
    for node in nodes:
        for source in node.inputs:
            if source is None or source in names or source.producer() is not None:
                continue
            tensor = weight_tensor(source)
            copy = ir.Value(
                name=f"c{len(names)}",
                shape=ir.Shape(tensor.shape.numpy()),
                type=ir.TensorType(tensor.dtype),
            )
            names[source] = copy
            if tensor.nbytes >= _LEAST:
                copy.name = f"array_{len(leaves)}"
                leaves.append(source)
                inputs.append(copy)
            else:
                copy.const_value = ir.tensor(read_weight(source), name=copy.name)
                small.append(copy)
        copies.append(_copied(node, len(copies), names))
    output = names[value]
    output.name = "weight"
    graph = ir.Graph(
        inputs, [output], nodes=copies, initializers=small, name="decoder",
        opset_imports=dict(model.opset_imports),
    )  # fmt: skip
    return leaves, ir.Model(graph, ir_version=model.ir_version)


def _copied(node: ir.Node, number: int, names: dict[ir.Value, ir.Value]) -> ir.Node:
    copy = ir.Node(
        node.domain,
        node.op_type,
        [None if source is None else names[source] for source in node.inputs],
        attributes=list(node.attributes.values()),
        num_outputs=len(node.outputs),
        name=f"n{number}",
    )
    for index, (old, new) in enumerate(zip(node.outputs, copy.outputs, strict=True)):
        new.name = f"v{number}_{index}"
        names[old] = new
    return copy


def _ancestors(value: ir.Value) -> list[ir.Node]:
    """The nodes that a value is computed by, each behind those it reads."""
    found: dict[ir.Node, None] = {}
    waiting: list[tuple[ir.Value | None, bool]] = [(value, False)]
    while waiting:
        here, is_done = waiting.pop()
        node = None if here is None else here.producer()
        if node is None or node in found:
            continue
        if is_done:
            found[node] = None
            continue
        waiting.append((here, True))
        waiting.extend((source, False) for source in reversed(node.inputs))
    return list(found)


def _decoder_of(
    part: ir.Model,
    leaves: Sequence[ir.Value],
    folder: Path,
    known: dict[str, _Decoder | None],
) -> _Decoder | None:
    """The decoder for a part of the model, written and run once.

    None when what it gives is small, or nothing is stored for it.
    """
    proto = ir.serde.serialize_model(part).SerializeToString(deterministic=True)
    key = hashlib.sha256(proto).hexdigest()
    if key not in known:
        known[key] = None
        feeds = {f"array_{number}": read_weight(leaf) for number, leaf in enumerate(leaves)}
        if leaves and all(array.dtype.name in _TYPES for array in feeds.values()):
            name = f"decoder-{sum(one is not None for one in known.values())}.onnx"
            with open_session(proto, optimize=False, custom_ops=False) as session:
                array = session.run(feeds)["weight"]
            if array.nbytes >= _LEAST:
                (folder / name).write_bytes(proto)
                known[key] = _Decoder(
                    file=name,
                    shape=array.shape,
                    dtype=ir.DataType.from_numpy(array.dtype),
                    nbytes=array.nbytes,
                )
    return known[key]


def _stored(file: BinaryIO, leaf: ir.Value) -> dict[str, Any]:
    """Append an array to the file of arrays; where it is."""
    array = read_weight(leaf)
    file.write(b"\0" * (-file.tell() % _LINE))
    offset = file.tell()
    file.write(array.tobytes())
    return {
        "type": str(array.dtype),
        "dims": list(array.shape),
        "offset": offset,
        "bytes": array.nbytes,
    }


def _save_running(
    model: ir.Model, given: Sequence[tuple[ir.Value, _Decoder]], paths: Sequence[str], path: Path
) -> None:
    """Write the model that reads its weights from paths that the page fills."""
    for (value, decoder), place in zip(given, paths, strict=True):
        stand_in = ir.Value(name=place, shape=ir.Shape(decoder.shape))
        stand_in.dtype = decoder.dtype
        value.replace_all_uses_with(stand_in)
        model.graph.inputs.append(stand_in)
    RemoveUnusedNodesPass()(model)
    save(model, path)
    written = ir.load(path)
    stand_ins = {value.name: value for value in written.graph.inputs}
    for (_, decoder), place in zip(given, paths, strict=True):
        value = stand_ins[place]
        written.graph.inputs.remove(value)
        value.const_value = ir.ExternalTensor(
            place, 0, decoder.nbytes, decoder.dtype, shape=ir.Shape(decoder.shape), name=place
        )
        written.graph.register_initializer(value)
    ir.save(written, path)
