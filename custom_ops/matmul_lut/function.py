"""What ``onnxq.MatMulLut`` means: a weight of codes and tables, activations in 8 bits or in float.

Columns of a row lie in groups of ``group``, and a weight is ``lut[r, g, code] · scales[r, g]``, an
axis of length 1 being shared. With ``activation_bits`` 8 each run of `BLOCK` columns of a token is
rounded to ``q = round(a · (127 / m))``, ties to even, m = max |a|, standing for ``q · (m / 127)``.
"""

from __future__ import annotations

from onnxq.custom_ops.spec import OperatorSpec
from onnxq.formats import Format
from onnxq.formats.lut import LutFormat

__all__ = ["BLOCK", "MATMUL_LUT"]

BLOCK = 128
"""Columns of a token that share a scale of 8-bit activations."""

_UNIT = 64
_SHORT = (16, 32)

_BODY = """
MatMulLut <rows, columns, bits, group, activation_bits> (A, codes, lut, scales) => (Y) {
    row_count = Constant<value_int: int = @rows>()
    column_count = Constant<value_int: int = @columns>()
    code_bits = Constant<value_int: int = @bits>()
    group_columns = Constant<value_int: int = @group>()
    a_bits = Constant<value_int: int = @activation_bits>()
    zero = Constant<value = int64 {0}>()
    one = Constant<value = int64 {1}>()
    seven = Constant<value = int64 {7}>()
    eight = Constant<value = int64 {8}>()
    one_byte = Constant<value = uint8 {1}>()
    any = Constant<value = int64[1] {-1}>()
    first = Constant<value = int64[1] {0}>()
    second = Constant<value = int64[1] {1}>()
    third = Constant<value = int64[1] {2}>()

    column = Range(zero, column_count, one)
    bit = Mul(column, code_bits)
    byte = Div(bit, eight)
    byte_bit = Mul(byte, eight)
    down_wide = Sub(bit, byte_bit)
    down = Cast<to = 2>(down_wide)
    up_wide = Sub(seven, down_wide)
    up = Cast<to = 2>(up_wide)
    low_byte = Gather<axis = 1>(codes, byte)
    low = BitShift<direction = "RIGHT">(low_byte, down)
    one_more = Constant<value = int64[4] {0, 0, 0, 1}>()
    padded_codes = Pad(codes, one_more)
    next_byte = Add(byte, one)
    high_byte = Gather<axis = 1>(padded_codes, next_byte)
    high_half = BitShift<direction = "LEFT">(high_byte, one_byte)
    high = BitShift<direction = "LEFT">(high_half, up)
    together = BitwiseOr(low, high)
    entries = Shape<start = 2, end = 3>(lut)
    mask_wide = Sub(entries, one)
    mask = Cast<to = 2>(mask_wide)
    code = BitwiseAnd(together, mask)

    table = Cast<to = 1>(lut)
    scale = Cast<to = 1>(scales)
    scale_of_table = Unsqueeze(scale, third)
    values = Mul(table, scale_of_table)
    flat = Reshape(values, any)
    value_rows = Shape<start = 0, end = 1>(values)
    value_groups = Shape<start = 1, end = 2>(values)
    rows_less = Sub(value_rows, one)
    has_rows = Min(rows_less, second)
    groups_less = Sub(value_groups, one)
    has_groups = Min(groups_less, second)
    group_step = Mul(entries, has_groups)
    row_size = Mul(entries, value_groups)
    row_step = Mul(row_size, has_rows)
    row = Range(zero, row_count, one)
    row_place = Mul(row, row_step)
    row_place_int = Cast<to = 6>(row_place)
    row_places = Unsqueeze(row_place_int, second)
    group_of = Div(column, group_columns)
    group_place = Mul(group_of, group_step)
    group_places = Cast<to = 6>(group_place)
    places = Add(row_places, group_places)
    code_int = Cast<to = 6>(code)
    index = Add(places, code_int)
    W = Gather(flat, index)
    W_turned = Transpose<perm = [1, 0]>(W)

    a = Cast<to = 1>(A)
    column_axis = Reshape(column_count, second)
    a_flat_shape = Concat<axis = 0>(any, column_axis)
    a_flat = Reshape(a, a_flat_shape)
    block = Constant<value = int64 {128}>()
    short = Mod(column_count, block)
    lacking = Sub(block, short)
    missing = Mod(lacking, block)
    missing_axis = Reshape(missing, second)
    pads = Concat<axis = 0>(first, first, first, missing_axis)
    a_padded = Pad(a_flat, pads)
    block_axis = Reshape(block, second)
    block_shape = Concat<axis = 0>(any, block_axis)
    blocks = Reshape(a_padded, block_shape)
    magnitude = Abs(blocks)
    most = ReduceMax<keepdims = 1>(magnitude, second)
    least = Constant<value = float {1e-30}>()
    most_at_least = Max(most, least)
    steps = Constant<value = float {127}>()
    inverse = Div(steps, most_at_least)
    step = Div(most_at_least, steps)
    scaled = Mul(blocks, inverse)
    rounded = Round(scaled)
    near = Mul(rounded, step)
    padded_count = Add(column_count, missing)
    padded_axis = Reshape(padded_count, second)
    near_shape = Concat<axis = 0>(any, padded_axis)
    near_rows = Reshape(near, near_shape)
    near_cut = Slice(near_rows, first, column_axis, second)
    a_shape = Shape(A)
    near_a = Reshape(near_cut, a_shape)
    is_rounded = Equal(a_bits, eight)
    used = Where(is_rounded, near_a, a)
    y = MatMul(used, W_turned)
    Y = CastLike(y, A)
}
"""


def _attributes(fmt: Format, shape: tuple[int, int]) -> dict[str, int]:
    rows, columns = shape
    found = _tables(fmt)
    return {
        "rows": rows,
        "columns": columns,
        "bits": found.bits,
        "group": min(found.group_size(columns), columns),
        "activation_bits": 8 if found.table_dtype == "int8" else 32,
    }


def _refusal(fmt: Format, shape: tuple[int, int]) -> str | None:
    found = _tables(fmt)
    group = found.group_size(shape[1])
    if group >= shape[1] or group % _UNIT == 0 or (group in _SHORT and not found.learned):
        return None
    return (
        "MatMulLut takes tables of a multiple of 64 columns, scales of 16 or 32 as well, and "
        f"{fmt} has groups of {group}"
    )


def _tables(fmt: Format) -> LutFormat:
    if not isinstance(fmt, LutFormat):
        raise TypeError(f"MatMulLut multiplies by entries of tables, and {fmt} has none")
    return fmt


MATMUL_LUT = OperatorSpec(
    name="MatMulLut",
    formats=(LutFormat,),
    arrays=("codes", "lut", "scales"),
    attributes=_attributes,
    body=_BODY,
    lowest_opset=18,
    summary="""Codes of 1 to 4 bits into tables that belong to a group, a row or the whole weight.
        int8 tables are multiplied with activations rounded to int8, one scale for each 128 columns
        of a token (activation_bits = 8), exactly within these 128; or in float32, as float16 tables
        always are (activation_bits = 32).""",
    kernels=("any CPU", "AVX2", "AVX-512", "AVX-512 VNNI", "NEON dot product", "CUDA"),
    refusal=_refusal,
)
