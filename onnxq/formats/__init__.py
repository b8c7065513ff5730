"""What stored bits mean: pure ``encode`` and ``decode``, granularities, names and packing."""

from onnxq.formats.granularity import Granularity, PerBlock, PerChannel, PerGroup, PerTensor
from onnxq.formats.nbits import encode_matmul_nbits, matmul_nbits_block, matmul_nbits_layout
from onnxq.formats.packing import pack_codes, packed_size, unpack_codes
from onnxq.formats.parse import Format, format_names, parse_format
from onnxq.formats.uniform import Arrays, IntFormat

__all__ = [
    "Arrays",
    "Format",
    "Granularity",
    "IntFormat",
    "PerBlock",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "encode_matmul_nbits",
    "format_names",
    "matmul_nbits_block",
    "matmul_nbits_layout",
    "pack_codes",
    "packed_size",
    "parse_format",
    "unpack_codes",
]
