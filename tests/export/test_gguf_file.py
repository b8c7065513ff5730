import re

import numpy as np
import pytest

from onnxq.errors import ExportError
from onnxq.export.gguf_file import open_gguf


@pytest.fixture(scope="module")
def path(make_gguf, gguf_recipe, tmp_path_factory):
    return make_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", gguf_recipe(quantized=True))


def test_reads_what_the_gguf_package_reads(path):
    import gguf

    ours, theirs = open_gguf(path), gguf.GGUFReader(path)
    written = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.metadata == written
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.read(tensor.name), expected.reshape(tensor.shape[::-1]))


def test_another_file_is_refused(tmp_path):
    other = tmp_path / "model.gguf"
    other.write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(ExportError, match=r"is not a GGUF file: it starts with b'PK"):
        open_gguf(other)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(ExportError, match="There is no file"):
        open_gguf(tmp_path / "no.gguf")


@pytest.mark.parametrize("kept", [4, 7, 20, 300, 1500, -4096, -1])
def test_a_truncated_file_is_refused_wherever_it_ends(path, tmp_path, kept):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ExportError, match=r"is truncated.*Fetch it again"):
        open_gguf(cut)


def test_every_flipped_header_byte_is_read_or_refused_with_a_sentence(path, tmp_path):
    """Damage never shows as another kind of exception, and never as endless work."""
    content = bytearray(path.read_bytes())
    damaged = tmp_path / "damaged.gguf"
    for position in range(4, 700, 3):
        flipped = bytearray(content)
        flipped[position] ^= 0xFF
        damaged.write_bytes(flipped)
        try:
            open_gguf(damaged)
        except ExportError as error:
            assert str(damaged) in str(error)


def test_old_and_foreign_versions_are_refused(path, tmp_path):
    content = bytearray(path.read_bytes())
    for version, sentence in ((1, "has GGUF version 1"), (3 << 24, "is big-endian")):
        content[4:8] = version.to_bytes(4, "little")
        other = tmp_path / "other.gguf"
        other.write_bytes(content)
        with pytest.raises(ExportError, match=re.escape(sentence)):
            open_gguf(other)
