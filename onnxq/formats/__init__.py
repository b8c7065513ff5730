"""What stored bits mean: pure ``encode`` and ``decode``, granularities, names and packing."""

from onnxq.formats.base import Arrays, Format, Grid, SideGrid, VectorFormat
from onnxq.formats.granularity import Granularity, PerBlock, PerChannel, PerGroup, PerTensor
from onnxq.formats.lut import LutFormat
from onnxq.formats.nbits import encode_matmul_nbits, matmul_nbits_block, matmul_nbits_layout
from onnxq.formats.packing import (
    pack_codes,
    pack_trits,
    packed_size,
    packed_trits,
    unpack_codes,
    unpack_trits,
)
from onnxq.formats.parse import FAMILIES, format_names, parse_format, parse_integers
from onnxq.formats.ternary import TernaryFormat
from onnxq.formats.uniform import IntFormat

__all__ = [
    "FAMILIES",
    "Arrays",
    "Format",
    "Granularity",
    "Grid",
    "IntFormat",
    "LutFormat",
    "PerBlock",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "SideGrid",
    "TernaryFormat",
    "VectorFormat",
    "encode_matmul_nbits",
    "format_names",
    "matmul_nbits_block",
    "matmul_nbits_layout",
    "pack_codes",
    "pack_trits",
    "packed_size",
    "packed_trits",
    "parse_format",
    "parse_integers",
    "unpack_codes",
    "unpack_trits",
]
