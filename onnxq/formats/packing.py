"""Codes as bits: little-endian bit streams, and the layout of ONNX Runtime's MatMulNBits.

Element 0 lies in the lowest bits of byte 0. For 1, 2, 4 and 8 bits this is what ONNX writes for
INT2/UINT2, INT4/UINT4 and INT8/UINT8 tensors (over the flattened tensor) and what MatMulNBits
reads (over each group). Widths of 3, 5, 6 and 7 bits cross byte borders in the same order.

Trits -1, 0 and 1 are the digits 0, 1 and 2 of numbers to the base 3, five of them a byte, the first
the lowest: 1.6 bits each, of which log2(3) = 1.585 are needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "pack_codes",
    "pack_trits",
    "packed_size",
    "packed_trits",
    "unpack_codes",
    "unpack_trits",
]

Bytes = npt.NDArray[np.uint8]

_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


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


def packed_trits(count: int) -> int:
    """Bytes that ``count`` trits take."""
    return -(-count // len(_POWERS))


def pack_trits(trits: npt.NDArray[np.int8]) -> Bytes:
    """Pack trits along the last axis.

    Args:
        trits: ``[..., n]`` int8 in {-1, 0, 1}.

    Returns:
        uint8 ``[..., ceil(n / 5)]``, each at most 242; the last byte is filled up with trits 0.
    """
    digits = (trits + np.int8(1)).view(np.uint8)
    missing = -digits.shape[-1] % len(_POWERS)
    if missing:
        filling = np.ones((*digits.shape[:-1], missing), np.uint8)
        digits = np.concatenate([digits, filling], axis=-1)
    packed = np.zeros((*digits.shape[:-1], digits.shape[-1] // len(_POWERS)), np.uint8)
    for place, power in enumerate(_POWERS):
        packed += digits[..., place :: len(_POWERS)] * power
    return packed


def unpack_trits(packed: Bytes, count: int) -> npt.NDArray[np.int8]:
    """Undo `pack_trits`: ``[..., count]`` int8."""
    digits = np.empty((*packed.shape, len(_POWERS)), np.uint8)
    for place, power in enumerate(_POWERS):
        digits[..., place] = packed // power % np.uint8(3)
    flat = digits.reshape(*packed.shape[:-1], -1)[..., :count]
    return np.ascontiguousarray(flat).view(np.int8) - np.int8(1)


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
