"""Formats by name: ``int4_g128_asym`` and back.

Each family reads its own names (`FAMILIES`). The grammar of integers is
``int<bits>[_tensor | _channel | _g<size> | _b<rows>x<columns>][_asym][_pos][_f16][_two]``
where bits are 1 to 8. No granularity means ``channel``.
"""

from __future__ import annotations

import difflib
import re

from onnxq.errors import FormatError
from onnxq.formats.base import Format, VectorFormat
from onnxq.formats.codebook import CodebookFormat
from onnxq.formats.e8p import E8pFormat
from onnxq.formats.granularity import Granularity, PerBlock, PerChannel, PerGroup, PerTensor
from onnxq.formats.lut import LutFormat
from onnxq.formats.ternary import TernaryFormat
from onnxq.formats.trellis import TrellisFormat
from onnxq.formats.uniform import IntFormat

__all__ = ["FAMILIES", "format_names", "parse_format", "parse_integers"]

FAMILIES: tuple[type[VectorFormat], ...] = (
    TrellisFormat,
    LutFormat,
    CodebookFormat,
    E8pFormat,
    TernaryFormat,
)
"""Formats other than integers; each reads its own names."""

_GRAMMAR = re.compile(
    r"int(?P<bits>[1-8])"
    r"(?:_(?P<coarse>tensor|channel)|_g(?P<group>[1-9]\d*)"
    r"|_b(?P<rows>[1-9]\d*)x(?P<columns>[1-9]\d*))?"
    r"(?P<asym>_asym)?(?P<pos>_pos)?(?P<half>_f16)?(?P<two>_two)?"
)


def parse_format(text: str) -> Format:
    """The format of this name; ``str()`` of it parses back to the same format.

    Raises:
        FormatError: the name is not a format; the message names the nearest one that is.
    """
    for family in FAMILIES:
        if (found := family.parse(text)) is not None:
            return found
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise FormatError(_no_such_format(text))
    return _integers(match)


def parse_integers(text: str) -> IntFormat:
    """The integer format of this name, for what rounds in even steps only.

    Raises:
        FormatError: the name is not a format, or is one of points.
    """
    fmt = parse_format(text)
    if isinstance(fmt, IntFormat):
        return fmt
    raise FormatError(f"{text!r} is no integer format, which is asked for here: try 'int4_g128'.")


def _integers(match: re.Match[str]) -> IntFormat:
    return IntFormat(
        bits=int(match["bits"]),
        symmetric=match["asym"] is None,
        granularity=_granularity(match),
        scale_dtype="float32" if match["half"] is None else "float16",
        positive=match["pos"] is not None,
        two_level=match["two"] is not None,
    )


def format_names() -> list[str]:
    """Names in common use, for suggestions and listings; the grammar allows more."""
    points = [name for family in FAMILIES for name in family.names()]
    spans = ["tensor", "channel", "g16", "g32", "g64", "g128", "g256", "b128x128"]
    integers = [
        f"int{bits}{span}{asym}"
        for bits in range(1, 9)
        for span in ["", *(f"_{span}" for span in spans)]
        for asym in ("", "_asym")
    ]
    return integers + points


def _granularity(match: re.Match[str]) -> Granularity:
    if match["group"]:
        return PerGroup(int(match["group"]))
    if match["rows"]:
        return PerBlock(int(match["rows"]), int(match["columns"]))
    return PerTensor() if match["coarse"] == "tensor" else PerChannel()


def _no_such_format(text: str) -> str:
    near = difflib.get_close_matches(text.lower(), format_names(), n=1, cutoff=0.0)
    return (
        f"{text!r} is not a format; the nearest name is {near[0]!r}. A name is "
        "int<bits 1-8>, then _tensor, _channel, _g<size> or _b<rows>x<columns>, then _asym, "
        "_pos, _f16 or _two: for example int8_channel, int4_g128, int2_g64_asym."
    )
