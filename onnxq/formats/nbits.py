"""The tensors of ONNX Runtime's ``com.microsoft.MatMulNBits`` from codes, or straight from weights.

``B`` is uint8 ``[N, groups, block * bits / 8]`` with unsigned codes, ``scales`` is ``[N, groups]``,
``zero_points`` is uint8 ``[N, ceil(groups * bits / 8)]`` or absent, and then 2**(bits - 1). N are
the rows (output features) of the canonical weight and K its columns; the operator computes
``A @ W.T``. Source: ContribOperators.md of ONNX Runtime, section MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.formats.base import check_weight
from onnxq.formats.granularity import PerBlock, PerGroup
from onnxq.formats.packing import pack_codes
from onnxq.formats.uniform import IntFormat
from onnxq.numerics.rounding import MINMAX, pack_groups

__all__ = ["encode_matmul_nbits", "matmul_nbits_block", "matmul_nbits_layout"]

_WIDEST_BLOCK = 128
"""Coarser scales are repeated per block of this size: larger blocks have no fast kernel, and
block size 512 is known to have returned zeros."""


def matmul_nbits_block(fmt: IntFormat, columns: int) -> int:
    """The ``block_size`` attribute with which MatMulNBits can hold a weight of this format.

    Raises:
        FormatError: the operator has no such bits, group size or granularity.
    """
    if fmt.bits not in (2, 4, 8):
        raise FormatError(f"MatMulNBits holds 2, 4 or 8 bits, and {fmt} has {fmt.bits}.")
    if isinstance(fmt.granularity, PerBlock):
        raise FormatError(
            f"MatMulNBits has a scale for each row and group, and {fmt} shares one among rows: "
            "choose a _g<size> format."
        )
    if isinstance(fmt.granularity, PerGroup):
        size = fmt.granularity.size
        if size < 16 or size & (size - 1):
            raise FormatError(
                f"MatMulNBits takes group sizes that are powers of two from 16 up, "
                f"and {fmt} has {size}: choose 32, 64 or 128."
            )
        return size
    return min(_WIDEST_BLOCK, max(16, 1 << (columns - 1).bit_length()))


def matmul_nbits_layout(
    arrays: Mapping[str, npt.NDArray[Any]], fmt: IntFormat
) -> dict[str, npt.NDArray[Any] | None]:
    """Lay the arrays of ``fmt.encode`` out for MatMulNBits.

    Rows that the block does not divide are filled up with codes of value 0; scales coarser than a
    block are repeated for each block.

    Returns:
        ``B``, ``scales`` and ``zero_points`` (None when symmetric), see the module docstring.

    Raises:
        FormatError: as for `matmul_nbits_block`.
    """
    codes, scales = arrays["codes"], arrays["scales"]
    rows, columns = codes.shape
    block = matmul_nbits_block(fmt, columns)
    groups = -(-columns // block)
    scales = np.ascontiguousarray(np.broadcast_to(scales, (rows, groups)))
    if fmt.symmetric:
        zeros = np.full((rows, groups), 2 ** (fmt.bits - 1), np.uint8)
        codes = (codes.view(np.uint8) + np.uint8(2 ** (fmt.bits - 1))).astype(np.uint8)
    else:
        zeros = np.ascontiguousarray(np.broadcast_to(arrays["zeros"], (rows, groups)))
    padded = np.repeat(zeros, block, axis=1)
    padded[:, :columns] = codes
    return {
        "B": pack_codes(padded.reshape(rows, groups, block), fmt.bits),
        "scales": scales,
        "zero_points": None if fmt.symmetric else pack_codes(zeros, fmt.bits),
    }


def encode_matmul_nbits(
    weight: npt.NDArray[Any],
    fmt: IntFormat,
    *,
    shrink: tuple[float, ...] = MINMAX,
    threads: int | None = None,
) -> dict[str, npt.NDArray[Any] | None]:
    """``matmul_nbits_layout(fmt.encode(weight), fmt)`` in one pass, codes never unpacked.

    Beside its arrays there is ``squares``, float64 ``[2, N]``: of each row, the sums of squared
    rounding errors and of squared values, so that the relative error of the weight is
    ``sqrt(squares[0].sum() / squares[1].sum())``. It is None for a format without groups.

    Args:
        weight: ``[N, K]``; pass the ``[K, N]`` weight of a MatMul as ``w.T``, no copy is made.
        fmt: a format that MatMulNBits can hold.
        shrink: see `IntFormat.encode`.
        threads: see `IntFormat.encode`.

    Raises:
        FormatError: as for `matmul_nbits_block` and `IntFormat.encode`.
    """
    check_weight(weight)
    block = matmul_nbits_block(fmt, weight.shape[1])
    if not isinstance(fmt.granularity, PerGroup):
        encoded = fmt.encode(weight, shrink=shrink, threads=threads)
        return {**matmul_nbits_layout(encoded, fmt), "squares": None}
    how = fmt.rounding(block, shrink)
    packed = pack_groups(weight.astype(np.float32, copy=False), how, threads=threads)
    return {
        "B": packed.codes,
        "scales": packed.scales.astype(fmt.scale_dtype, copy=False),
        "zero_points": packed.zeros,
        "squares": packed.squares,
    }
