"""The reader of CTranslate2's files, on files written here."""

import struct

import ml_dtypes
import numpy as np
import pytest

from onnxq.errors import ModelLoadError
from onnxq.models.ctranslate2_file import read_ctranslate2

CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}


def _string(text):
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def ctranslate2_bytes(specification, arrays, aliases=(), version=6):
    parts = [struct.pack("<I", version), _string(specification), struct.pack("<I", 3)]
    parts.append(struct.pack("<I", len(arrays)))
    for name, array in arrays.items():
        parts += [_string(name), struct.pack("<B", array.ndim)]
        parts.append(struct.pack(f"<{array.ndim}I", *array.shape))
        parts += [struct.pack("<BI", CODES[array.dtype.name], array.nbytes), array.tobytes()]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [_string(alias) + _string(name) for alias, name in aliases]
    return b"".join(parts)


def test_every_type_scalars_and_aliases(tmp_path):
    arrays = {
        name: np.arange(6).reshape(2, 3).astype(name if name != "bfloat16" else ml_dtypes.bfloat16)
        for name in CODES
    } | {"scalar": np.array(7, np.int16)}
    path = tmp_path / "model.bin"
    path.write_bytes(ctranslate2_bytes("ToySpec", arrays, [("tied", "float16")]))
    specification, read = read_ctranslate2(path)
    assert specification == "ToySpec"
    assert read.keys() == {*arrays, "tied"}
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert np.array_equal(read[name], array)
    assert np.shares_memory(read["tied"], read["float16"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"GGUF" + data,
        lambda data: b"",
        lambda data: struct.pack("<I", 99) + data[4:],
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, damage):
    path = tmp_path / "model.bin"
    path.write_bytes(damage(ctranslate2_bytes("ToySpec", {"a": np.zeros((64, 64), np.float32)})))
    with pytest.raises(ModelLoadError, match=r"model\.bin' is not a CTranslate2 model of version"):
        read_ctranslate2(path)
