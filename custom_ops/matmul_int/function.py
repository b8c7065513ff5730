"""What ``onnxq.MatMulInt`` means, in standard operators: integer weights times rounded tokens.

Each token a of A is rounded to int8: ``q = round(a · (127 / m))``, ties to even, for its largest
magnitude m, at least 2⁻¹⁰⁰; what it stands for is ``q · (m / 127)``. With scales s[row, group] ::

    Y[token, row] = m / 127 · Σ_group s[row, group] · Σ_column q[column] (code[row, column] − zero)

The inner sums are whole numbers. Scales of two levels (`onnxq.formats.two_level`) are given in two
parts, ``scales`` of rows times ``ratios`` of groups, and then the sum over groups is whole as well.

Codes and zeros are those of `onnxq.formats.IntFormat.pack`. Signed codes are two's complement; with
their highest bit turned they are unsigned codes of zero 2^(bits − 1), and a stored 0 for the zero
becomes just that, so that both kinds take the same way. Arrays that a format lacks are ``[1, 1]``.
"""

from __future__ import annotations

import numpy as np

from onnxq.custom_ops.functions import rounded_product
from onnxq.custom_ops.spec import OperatorSpec
from onnxq.formats import Format, IntFormat, PerBlock

__all__ = ["MATMUL_INT"]

_INT32 = 2**31 - 1


def _unpacked(array: str, count: str) -> str:
    """Text that reads ``{array}_codes`` uint8 ``[n, count]`` from the stream of bits ``array``."""
    return f"""
    {array}_number = Range(nothing, {count}, step)
    {array}_place = Mul({array}_number, width)
    {array}_byte_wanted = Div({array}_place, eight)
    {array}_shift_wide = Mod({array}_place, eight)
    {array}_bytes = Shape<start = 1, end = 2>({array})
    {array}_last_byte = Sub({array}_bytes, step)
    {array}_byte = Min({array}_byte_wanted, {array}_last_byte)
    {array}_byte_behind = Add({array}_byte, step)
    {array}_byte_after = Min({array}_byte_behind, {array}_last_byte)
    {array}_shift = Cast<to = 2>({array}_shift_wide)
    {array}_low = Gather<axis = 1>({array}, {array}_byte)
    {array}_high = Gather<axis = 1>({array}, {array}_byte_after)
    {array}_low_bits = BitShift<direction = "RIGHT">({array}_low, {array}_shift)
    {array}_left = Sub(seven, {array}_shift)
    {array}_high_moved = BitShift<direction = "LEFT">({array}_high, {array}_left)
    {array}_high_bits = BitShift<direction = "LEFT">({array}_high_moved, one)
    {array}_both = BitwiseOr({array}_low_bits, {array}_high_bits)
    {array}_stored = BitwiseAnd({array}_both, mask)
    {array}_codes = BitwiseXor({array}_stored, half)
"""


def _of_columns(array: str, source: str) -> str:
    """Text that repeats a number for each group, or one for all, for each column."""
    return f"""
    {array}_shape = Shape<start = 1, end = 2>({source})
    {array}_last = Sub({array}_shape, step)
    {array}_group = Min(group_of, {array}_last)
    {array}_of_columns = Gather<axis = 1>({source}, {array}_group)
    {array}_factor = Cast<to = 1>({array}_of_columns)
"""


_BODY = f"""
MatMulInt <rows, columns, bits, group, signed, activation_bits> (A, codes, scales, ratios, zeros)
        => (Y) {{
    nothing = Constant<value = int64 {{0}}>()
    step = Constant<value = int64 {{1}}>()
    eight = Constant<value = int64 {{8}}>()
    one = Constant<value = uint8 {{1}}>()
    seven = Constant<value = uint8 {{7}}>()
    full = Constant<value = uint8 {{255}}>()
    last_axis = Constant<value = int64[1] {{-1}}>()
    most = Constant<value = float {{127}}>()
    least = Constant<value = float {{7.888609052210118e-31}}>()

    width = Constant<value_int: int = @bits>()
    across = Constant<value_int: int = @columns>()
    group_size = Constant<value_int: int = @group>()
    sign = Constant<value_int: int = @signed>()
    spare = Sub(eight, width)
    spare_bits = Cast<to = 2>(spare)
    mask = BitShift<direction = "RIGHT">(full, spare_bits)
    below = Sub(width, step)
    below_bits = Cast<to = 2>(below)
    sign_bit = Cast<to = 2>(sign)
    half = BitShift<direction = "LEFT">(sign_bit, below_bits)
    started = Add(across, group_size)
    filled = Sub(started, step)
    groups = Div(filled, group_size)
{_unpacked("codes", "across")}{_unpacked("zeros", "groups")}
    group_of = Div(codes_number, group_size)
{_of_columns("zero", "zeros_codes")}{_of_columns("ratio", "ratios")}{_of_columns("scale", "scales")}
    code = Cast<to = 1>(codes_codes)
    whole = Sub(code, zero_factor)
    multiple = Mul(whole, ratio_factor)
    weight = Mul(multiple, scale_factor)
    weight_turned = Transpose<perm = [1, 0]>(weight)

{rounded_product("last_axis")}}}
"""


def _attributes(fmt: Format, shape: tuple[int, int]) -> dict[str, int]:
    found = _integers(fmt)
    return {
        "rows": shape[0],
        "columns": shape[1],
        "bits": found.bits,
        "group": min(found.group_size(shape[1]), shape[1]),
        "signed": int(found.symmetric),
        "activation_bits": 8,
    }


def _refusal(fmt: Format, shape: tuple[int, int]) -> str | None:
    """Products that are summed as whole numbers must fit int32."""
    found, columns = _integers(fmt), shape[1]
    if isinstance(found.granularity, PerBlock):
        return f"{fmt} shares a scale among rows, and MatMulInt has one for each"
    largest = 127 if found.two_level else 2**found.bits - 1
    summed = columns if found.two_level else min(found.group_size(columns), columns)
    if summed * 127 * largest > _INT32:
        return (
            f"sums of {summed} products of {fmt} with int8 do not fit int32, which MatMulInt "
            "adds them in; choose smaller groups"
        )
    return None


def _integers(fmt: Format) -> IntFormat:
    if not isinstance(fmt, IntFormat):
        raise TypeError(f"MatMulInt multiplies by integers, and {fmt} has none")
    return fmt


MATMUL_INT = OperatorSpec(
    name="MatMulInt",
    formats=(IntFormat,),
    arrays=("codes", "scales", "ratios", "zeros"),
    attributes=_attributes,
    body=_BODY,
    lowest_opset=18,
    summary="""Integers of 1 to 8 bits times tokens rounded to int8 inside, one scale for each
        token. Products are summed exactly in int32, over a group, or over a whole row where scales
        are of two levels (`int4_g128_two`). Scales
        are float32 or float16; `ratios` and `zeros` that a format lacks are [1, 1], of 1 and 0.""",
    kernels=(
        "any CPU",
        "AVX2",
        "AVX-512",
        "AVX-512 VNNI",
        "AMX",
        "NEON dot product",
        "NEON i8mm",
        "CUDA",
    ),
    refusal=_refusal,
    placeholders={"ratios": np.ones((1, 1), np.int8), "zeros": np.zeros((1, 1), np.uint8)},
)
