"""Attach external data to a model, after checking that it is all there and stays in its folder.

Every location is resolved when the model is loaded, so a missing, short or unsafe file is an
error at the beginning of a run and not in the middle of it.
"""

from __future__ import annotations

import os
from pathlib import Path

import onnx_ir as ir

from onnxq.errors import ModelLoadError
from onnxq.graph.data_file import DataFile, FileTensor
from onnxq.graph.walk import walk_graphs

__all__ = ["attach_data", "data_locations"]

_MAX_OPEN_FILES = 64


def attach_data(model: ir.Model, folder: Path | None) -> None:
    """Replace every `ir.ExternalTensor` of the model by a checked `FileTensor`.

    Args:
        model: changed in place; no tensor data are read.
        folder: the folder locations are relative to; None uses each tensor's own base folder.

    Raises:
        ModelLoadError: names the tensor, the file, and what to do.
    """
    places = _Places(folder, len(data_locations(model)))
    for _, graph in walk_graphs(model):
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if isinstance(value.const_value, ir.ExternalTensor):
                    value.const_value = places.tensor(value.const_value)
        for node in graph:
            for name, attribute in tuple(node.attributes.items()):
                if _is_external(attribute):
                    tensor = places.tensor(attribute.as_tensor())
                    node.attributes[name] = ir.AttrTensor(name, tensor)


def _is_external(attribute: ir.Attr) -> bool:
    return (
        not attribute.is_ref()
        and attribute.type == ir.AttributeType.TENSOR
        and isinstance(attribute.value, ir.ExternalTensor)
    )


def data_locations(model: ir.Model) -> set[str]:
    """The data files that a model names, as it names them."""
    found = set()
    for _, graph in walk_graphs(model):
        values = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
        tensors = [value.const_value for value in values]
        attributes = (a for node in graph for a in node.attributes.values())
        tensors += [attribute.as_tensor() for attribute in attributes if _is_external(attribute)]
        found |= {str(t.location) for t in tensors if isinstance(t, ir.ExternalTensor)}
    return found


class _Places:
    """The data files of one model, each checked and opened once."""

    def __init__(self, folder: Path | None, count: int) -> None:
        self._folder = folder
        self._keep_open = count <= _MAX_OPEN_FILES
        self._files: dict[Path, DataFile] = {}

    def tensor(self, tensor: ir.TensorProtocol | None) -> FileTensor:
        if not isinstance(tensor, ir.ExternalTensor):
            raise TypeError(f"expected an external tensor, got {type(tensor).__name__}")
        file = self._file(tensor)
        offset = tensor.offset or 0
        self._check_extent(tensor, file, offset)
        return FileTensor(
            file,
            offset,
            tensor.dtype,
            ir.Shape(tensor.shape.numpy()),
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )

    def _file(self, tensor: ir.ExternalTensor) -> DataFile:
        folder = self._folder if self._folder is not None else _own_folder(tensor)
        path = folder / os.fspath(tensor.location)
        if path not in self._files:
            _check_path(tensor, folder, path)
            try:
                self._files[path] = DataFile(path, keep_open=self._keep_open)
            except OSError as error:
                raise ModelLoadError(
                    f"External data of tensor {tensor.name!r}: {path} cannot be opened "
                    f"({error.strerror}). Make it readable and load the model again."
                ) from error
        return self._files[path]

    def _check_extent(self, tensor: ir.ExternalTensor, file: DataFile, offset: int) -> None:
        length = tensor.length
        if offset < 0 or (length is not None and length not in (0, tensor.nbytes)):
            raise ModelLoadError(
                f"External data of tensor {tensor.name!r}: the model says {length} bytes at "
                f"offset {offset} of {file.path.name}, but {tensor.dtype.name}"
                f"{list(tensor.shape.numpy())} takes {tensor.nbytes}. The model and its data do "
                f"not belong together: copy or download both again."
            )
        if offset + tensor.nbytes > file.size:
            raise ModelLoadError(
                f"External data of tensor {tensor.name!r} ends at byte "
                f"{offset + tensor.nbytes} of {file.path}, which has only {file.size}: the file "
                f"is truncated. Copy or download it again."
            )


def _own_folder(tensor: ir.ExternalTensor) -> Path:
    base = os.fspath(tensor.base_dir)
    if not base:
        raise ModelLoadError(
            f"Tensor {tensor.name!r} is stored in the file {os.fspath(tensor.location)!r}, but "
            f"the model was given without its folder. Pass the path of the .onnx file instead."
        )
    return Path(base)


def _check_path(tensor: ir.ExternalTensor, folder: Path, path: Path) -> None:
    location = os.fspath(tensor.location)
    lead = f"External data of tensor {tensor.name!r}"
    inside = Path(os.path.normpath(path.absolute()))
    if (
        not location
        or Path(location).is_absolute()
        or not inside.is_relative_to(os.path.normpath(folder.absolute()))
    ):
        raise ModelLoadError(
            f"{lead}: the location {location!r} leads out of the model's folder {folder}, which "
            f"could make a model read any file of this machine. Put the data file beside the "
            f"model and give its plain name as location."
        )
    if not path.exists():
        kind = "is a symbolic link to nothing" if path.is_symlink() else "does not exist"
        raise ModelLoadError(
            f"{lead}: the file {path} {kind}. Copy or download it beside the model."
        )
    real = path.resolve()
    if not real.is_relative_to(folder.resolve()):
        raise ModelLoadError(
            f"{lead}: {path} is a symbolic link to {real}, outside the model's folder (a Hugging "
            f"Face cache looks like this). Make a real copy and load that: "
            f"cp -rL {folder} COPY, or download with local_dir."
        )
    if not real.is_file():
        raise ModelLoadError(f"{lead}: {path} is not a file. Put the data file there.")
