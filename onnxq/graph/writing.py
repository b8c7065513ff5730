"""Save a model so that a good file is never replaced by half of one.

Weights are written one at a time, so memory is bounded by the largest. Large models keep them in
one data file beside the model, ``model.onnx.data``; how that file and the model are replaced
together is told, and proved, in `onnxq.graph.replacing`. The bytes depend on the model only: the
same model saved twice gives the same files.
"""

from __future__ import annotations

import dataclasses
import errno
import shutil
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import onnx_ir as ir

from onnxq.errors import ModelSaveError, OnnxqError
from onnxq.graph.check import check_graph, name_nodes
from onnxq.graph.data_file import FileTensor
from onnxq.graph.lock import output_lock
from onnxq.graph.replacing import Replacement
from onnxq.graph.stage import clone_model
from onnxq.graph.versions import fit_runtime
from onnxq.graph.walk import walk_graphs

if TYPE_CHECKING:
    import onnx

__all__ = ["INLINE_LIMIT", "SaveProgress", "save"]

SaveProgress = Callable[[str, int, int], None]
"""Called with (tensor name, bytes written, bytes in all) before each tensor and at the end."""

INLINE_LIMIT = 64 << 20
"""A model with no more weight bytes than this is one file, unless asked otherwise."""
_SMALL = 1024
"""Tensors below this stay in the model file: shapes, axes, scalars the runtime reads at once."""
_PAGE, _PAGE_FROM, _LINE = 4096, 1 << 20, 64
"""Large tensors begin on a page, so that runtimes can map them; others on a cache line."""
_CHUNK = 16 << 20


def save(
    model: ir.Model,
    path: str | Path,
    *,
    progress: SaveProgress | None = None,
    external: bool | None = None,
) -> Path:
    """Write a model; lazy weights are computed now, one at a time.

    The model in memory is not changed and stays readable, also when ``path`` is the file it was
    loaded from.

    Args:
        model: any model with a well-formed graph.
        path: the ``.onnx`` file to write, or a folder, which then holds ``model.onnx``. Missing
            folders are made.
        progress: called for each weight that goes into the data file.
        external: True puts weights into a data file, False never does; None does so from 64 MiB.

    Returns:
        The path of the model file.

    Raises:
        ModelSaveError: no space, no permission, another run is writing the same file, or the
            model cannot be stored as asked. What was there before is untouched.
        UnsupportedGraph: the graph is not well formed, or needs a newer opset than ONNX Runtime
            takes.
    """
    target = _target(Path(path))
    check_graph(model, node_names=False)
    copy = clone_model(model)
    name_nodes(copy)
    fit_runtime(copy, convert=True)
    slots = _plan(copy, external)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with output_lock(target), Replacement(target) as replacement:
            if slots:
                total = slots[-1].end
                replacement.write_data(total, lambda file: _write_slots(file, slots, progress))
            replacement.commit(lambda location: _serialize(copy, slots, location))
    except OSError as error:
        raise ModelSaveError(_os_sentence(target, slots, error)) from error
    return target


@dataclasses.dataclass(frozen=True)
class _Slot:
    """One stretch of the data file and the tensor stored there."""

    tensor: ir.TensorProtocol
    offset: int
    users: list[ir.Value | tuple[ir.Node, str]]
    """Initializers, or (node, attribute), that hold this tensor."""

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.tensor.nbytes


def _target(path: Path) -> Path:
    if path.is_dir() or not path.suffix:
        path = path / "model.onnx"
    if path.suffix != ".onnx":
        raise ModelSaveError(
            f"{path}: a model is saved as .onnx, not {path.suffix}. Give a name that ends with "
            f".onnx, or a folder."
        )
    return path.absolute()


def _plan(model: ir.Model, external: bool | None) -> list[_Slot]:
    """Which tensors go into the data file, and where; a tensor used twice is stored once."""
    users: dict[Hashable, tuple[ir.TensorProtocol, list[ir.Value | tuple[ir.Node, str]]]] = {}
    inline = 0
    for tensor, user in _stored_tensors(model):
        if tensor.dtype == ir.DataType.STRING or tensor.nbytes < _SMALL:
            inline += 0 if tensor.dtype == ir.DataType.STRING else tensor.nbytes
            continue
        users.setdefault(_content_key(tensor), (tensor, []))[1].append(user)
    total = inline + sum(tensor.nbytes for tensor, _ in users.values())
    if external is False or (external is None and total <= INLINE_LIMIT):
        if total > (1 << 31) - (16 << 20):
            raise ModelSaveError(
                f"The weights take {total} bytes and a single ONNX file cannot exceed 2 GiB. "
                f"Save with external=True."
            )
        return []
    slots: list[_Slot] = []
    end = 0
    for tensor, holders in users.values():
        step = _PAGE if tensor.nbytes >= _PAGE_FROM else _LINE
        slots.append(_Slot(tensor, -(-end // step) * step, holders))
        end = slots[-1].end
    return slots


def _stored_tensors(
    model: ir.Model,
) -> Iterator[tuple[ir.TensorProtocol, ir.Value | tuple[ir.Node, str]]]:
    for _, graph in walk_graphs(model):
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    yield value.const_value, value
        for node in graph:
            for name, attribute in node.attributes.items():
                if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor(), (node, name)


def _content_key(tensor: ir.TensorProtocol) -> Hashable:
    if isinstance(tensor, FileTensor):
        shape = tensor.shape.numpy()
        return id(tensor.file), tensor.offset, tensor.dtype, shape
    return id(tensor)


def _write_slots(file: BinaryIO, slots: list[_Slot], progress: SaveProgress | None) -> None:
    total = slots[-1].end
    for slot in slots:
        if progress is not None:
            progress(slot.tensor.name or "", slot.offset, total)
        file.seek(slot.offset)
        _write_tensor(slot.tensor, file)
        if file.tell() != slot.end:
            raise ModelSaveError(
                f"Weight {slot.tensor.name!r} was declared with {slot.tensor.nbytes} bytes and "
                f"gave {file.tell() - slot.offset}. This is a fault of the pass that made it."
            )
    if progress is not None:
        progress("", total, total)


def _write_tensor(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    """Append the stored bytes, without a second copy of the tensor in memory."""
    if isinstance(tensor, FileTensor):
        tensor.tofile(file)
        return
    if tensor.dtype.bitwidth < 8:
        file.write(tensor.tobytes())
        return
    array = np.ascontiguousarray(tensor.numpy())
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    flat = array.reshape(-1).view(np.uint8).data
    for start in range(0, len(flat), _CHUNK):
        file.write(flat[start : start + _CHUNK])


def _point_to(slots: list[_Slot], location: str) -> None:
    """Replace the planned tensors of (our copy of) the model by references into the data file."""
    for slot in slots:
        for user in slot.users:
            reference = ir.ExternalTensor(
                location,
                slot.offset,
                slot.tensor.nbytes,
                slot.tensor.dtype,
                shape=ir.Shape(slot.tensor.shape.numpy()),
                name=(user.name if isinstance(user, ir.Value) else slot.tensor.name) or "",
                doc_string=slot.tensor.doc_string,
                metadata_props=dict(slot.tensor.metadata_props),
            )
            if isinstance(user, ir.Value):
                user.const_value = reference
            else:
                node, name = user
                node.attributes[name] = ir.AttrTensor(name, reference)


def _serialize(model: ir.Model, slots: list[_Slot], location: str) -> bytes:
    from google.protobuf.message import EncodeError

    _point_to(slots, location)
    try:
        proto: onnx.ModelProto = ir.serde.serialize_model(model)
        return bytes(proto.SerializeToString(deterministic=True))
    except (ir.serde.SerdeError, EncodeError, ValueError, TypeError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OnnxqError | OSError):
                raise cause from error
            last, cause = cause, cause.__cause__
        raise ModelSaveError(
            f"The model cannot be written as ONNX: {last}. Nothing was changed on disk; "
            f"check the last pass of the recipe."
        ) from error


def _os_sentence(target: Path, slots: list[_Slot], error: OSError) -> str:
    """What the file system refused, with the numbers that tell what to do."""
    why = error.strerror or str(error)
    lead = f"{target} could not be written ({why}); what was there is untouched."
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{lead} Check that the folder exists and can be written."
    need = f"The data take {slots[-1].end} bytes and " if slots else ""
    free = shutil.disk_usage(target.parent).free
    return f"{lead} {need}{free} bytes are free there: make space, or choose another disk."
