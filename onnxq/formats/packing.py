"""Codes as bits: little-endian bit streams, and the layout of ONNX Runtime's MatMulNBits.

Element 0 lies in the lowest bits of byte 0. For 1, 2, 4 and 8 bits this is what ONNX writes for
INT2/UINT2, INT4/UINT4 and INT8/UINT8 tensors (over the flattened tensor) and what MatMulNBits
reads (over each group). Widths of 3, 5, 6 and 7 bits cross byte borders in the same order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["pack_codes", "packed_size", "unpack_codes"]

Bytes = npt.NDArray[np.uint8]


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take."""
    return -(-count * bits // 8)


def pack_codes(codes: npt.NDArray[Any], bits: int) -> Bytes:
    """Pack integer codes along the last axis.

    Args:
        codes: ``[..., n]``, int8 or uint8; negative codes keep their low ``bits`` bits (two's
            complement, as ONNX INT4 does).
        bits: 1 to 8; up to 16 for uint16 codes.

    Returns:
        uint8 ``[..., ceil(n * bits / 8)]``; unused high bits of the last byte are 0.
    """
    if bits > 8:
        return _pack_wide(codes.astype("<u2", copy=False), bits)
    raw = codes.view(np.uint8) if codes.dtype == np.int8 else codes.astype(np.uint8, copy=False)
    if bits == 8:
        return np.ascontiguousarray(raw)
    raw = raw & np.uint8(2**bits - 1)
    if 8 % bits:
        streams = np.unpackbits(raw[..., None], axis=-1, count=bits, bitorder="little")
        return np.packbits(streams.reshape(*raw.shape[:-1], -1), axis=-1, bitorder="little")
    per_byte = 8 // bits
    missing = -raw.shape[-1] % per_byte
    if missing:
        raw = np.concatenate([raw, np.zeros((*raw.shape[:-1], missing), np.uint8)], axis=-1)
    packed = raw[..., 0::per_byte].copy()
    for place in range(1, per_byte):
        packed |= raw[..., place::per_byte] << np.uint8(place * bits)
    return packed


def unpack_codes(packed: Bytes, bits: int, count: int, *, signed: bool) -> npt.NDArray[Any]:
    """Undo `pack_codes`: ``[..., count]`` int8 when ``signed``, else uint8, uint16 over 8 bits."""
    if bits > 8:
        return _unpack_wide(packed, bits, count)
    if bits == 8:
        raw = packed[..., :count].copy()
        return raw.view(np.int8) if signed else raw
    if 8 % bits:
        stream = np.unpackbits(packed, axis=-1, count=count * bits, bitorder="little")
        each = stream.reshape(*packed.shape[:-1], count, bits)
        raw = np.packbits(each, axis=-1, bitorder="little")[..., 0]
    else:
        per_byte = 8 // bits
        raw = np.empty((*packed.shape[:-1], packed.shape[-1] * per_byte), np.uint8)
        for place in range(per_byte):
            raw[..., place::per_byte] = (packed >> np.uint8(place * bits)) & np.uint8(2**bits - 1)
        raw = np.ascontiguousarray(raw[..., :count])
    if not signed:
        return raw
    unused = np.uint8(8 - bits)
    return (raw << unused).view(np.int8) >> np.int8(unused)


def _pack_wide(codes: npt.NDArray[np.uint16], bits: int) -> Bytes:
    each = np.ascontiguousarray(codes)[..., None].view(np.uint8)
    if bits == 16:
        return each.reshape(*codes.shape[:-1], -1)
    streams = np.unpackbits(each, axis=-1, count=bits, bitorder="little")
    return np.packbits(streams.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")


def _unpack_wide(packed: Bytes, bits: int, count: int) -> npt.NDArray[np.uint16]:
    stream = np.unpackbits(packed, axis=-1, count=count * bits, bitorder="little")
    each = stream.reshape(*packed.shape[:-1], count, bits)
    wide = np.packbits(each, axis=-1, bitorder="little")
    return np.ascontiguousarray(wide).view("<u2")[..., 0].astype(np.uint16)
