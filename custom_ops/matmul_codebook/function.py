"""What ``onnxq.MatMulCodebook`` means, in standard operators.

Codes are cut out of their bits two bytes at a time: code i of a row begins at bit i · bits, and
ends before the end of the byte after the one in which it begins (bits are 4, 6, 8, 12 or 16).
"""

from __future__ import annotations

from onnxq.custom_ops.spec import OperatorSpec
from onnxq.formats import Format
from onnxq.formats.codebook import CodebookFormat

__all__ = ["MATMUL_CODEBOOK"]

_BODY = """
MatMulCodebook <rows, columns, dimension, bits, books, group, block_rows, block_columns,
                activation_bits> (A, codes, codebook, scales) => (Y) {
    row_count = Constant<value_int: int = @rows>()
    column_count = Constant<value_int: int = @columns>()
    width = Constant<value_int: int = @dimension>()
    code_bits = Constant<value_int: int = @bits>()
    book_count = Constant<value_int: int = @books>()
    group_size = Constant<value_int: int = @group>()
    block_height = Constant<value_int: int = @block_rows>()
    block_width = Constant<value_int: int = @block_columns>()
    rounded_bits = Constant<value_int: int = @activation_bits>()
    zero = Constant<value = int64 {0}>()
    one = Constant<value = int64 {1}>()
    two = Constant<value = int64 {2}>()
    eight = Constant<value = int64 {8}>()
    byte = Constant<value = int32 {256}>()
    first = Constant<value = int64[1] {0}>()
    second = Constant<value = int64[1] {1}>()
    third = Constant<value = int64[1] {2}>()
    last = Constant<value = int64[1] {-1}>()
    steps = Constant<value = float {127}>()
    least = Constant<value = float {7.888609052210118e-31}>()

    runs = Div(column_count, width)
    each = Mul(runs, book_count)
    index = Range(zero, each, one)
    bit = Mul(index, code_bits)
    low_place = Div(bit, eight)
    place_after = Add(low_place, one)
    byte_shape = Shape<start = 1, end = 2>(codes)
    past_end = Squeeze(byte_shape, first)
    end = Sub(past_end, one)
    high_place = Min(place_after, end)
    low_byte = Gather<axis = 1>(codes, low_place)
    high_byte = Gather<axis = 1>(codes, high_place)
    low = Cast<to = 6>(low_byte)
    high = Cast<to = 6>(high_byte)
    high_part = Mul(high, byte)
    word = Add(low, high_part)
    shift = Mod(bit, eight)
    divisor_wide = Pow(two, shift)
    divisor = Cast<to = 6>(divisor_wide)
    shifted = Div(word, divisor)
    entry_count = Pow(two, code_bits)
    entry_limit = Cast<to = 6>(entry_count)
    code = Mod(shifted, entry_limit)

    run = Div(index, book_count)
    book = Mod(index, book_count)
    column = Mul(run, width)
    column_block = Div(column, block_width)
    columns_more = Add(column_count, block_width)
    columns_up = Sub(columns_more, one)
    column_blocks = Div(columns_up, block_width)
    row_index = Range(zero, row_count, one)
    row_block = Div(row_index, block_height)
    row_set = Mul(row_block, column_blocks)
    row_set_column = Unsqueeze(row_set, second)
    set = Add(row_set_column, column_block)
    set_books = Mul(set, book_count)
    which = Add(set_books, book)
    entries_before = Mul(which, entry_count)
    code_wide = Cast<to = 7>(code)
    entry = Add(entries_before, code_wide)
    width_at = Unsqueeze(width, first)
    entry_shape = Concat<axis = 0>(last, width_at)
    entries = Reshape(codebook, entry_shape)
    found = Gather<axis = 0>(entries, entry)
    book_at = Unsqueeze(book_count, first)
    row_at = Unsqueeze(row_count, first)
    run_at = Unsqueeze(runs, first)
    found_shape = Concat<axis = 0>(row_at, run_at, book_at, width_at)
    found_runs = Reshape(found, found_shape)
    found_float = Cast<to = 1>(found_runs)
    sums = ReduceSum<keepdims = 0>(found_float, third)
    column_at = Unsqueeze(column_count, first)
    weight_shape = Concat<axis = 0>(row_at, column_at)
    units = Reshape(sums, weight_shape)
    every_column = Range(zero, column_count, one)
    group_of = Div(every_column, group_size)
    scales_float = Cast<to = 1>(scales)
    scale = Gather<axis = 1>(scales_float, group_of)
    weight = Mul(units, scale)
    weight_turned = Transpose<perm = [1, 0]>(weight)

    a = Cast<to = 1>(A)
    magnitude = Abs(a)
    largest = ReduceMax<keepdims = 1>(magnitude, last)
    most = Max(largest, least)
    inverse = Div(steps, most)
    scaled = Mul(a, inverse)
    whole = Round(scaled)
    step = Div(most, steps)
    rounded = Mul(whole, step)
    is_rounded = Equal(rounded_bits, eight)
    token = Where(is_rounded, rounded, a)
    product = MatMul(token, weight_turned)
    Y = CastLike(product, A)
}
"""


def _attributes(fmt: Format, shape: tuple[int, int]) -> dict[str, int]:
    if not isinstance(fmt, CodebookFormat):
        raise TypeError(f"{fmt} has no codebook")
    rows, columns = shape
    block_rows, block_columns = fmt.block_shape(rows, columns)
    return {
        "rows": rows,
        "columns": columns,
        "dimension": fmt.dimension,
        "bits": fmt.code_bits,
        "books": fmt.books,
        "group": min(fmt.group_size(columns), columns),
        "block_rows": block_rows,
        "block_columns": block_columns,
        "activation_bits": 8,
    }


MATMUL_CODEBOOK = OperatorSpec(
    name="MatMulCodebook",
    formats=(CodebookFormat,),
    arrays=("codes", "codebook", "scales"),
    attributes=_attributes,
    body=_BODY,
    lowest_opset=18,
    summary="""Runs of ``dimension`` columns are entries of a codebook, or sums of an entry of each
        of several; ``group`` columns share a scale, and books serve blocks of the weight. With
        ``activation_bits = 8``, which is written, each token is rounded to int8, one scale for all
        its columns, and the products with the codebooks, int8 as they are stored, are summed
        exactly; with 32 the token is taken as it is. For up to 4 tokens and books of up to 256
        entries the products of a run of the token with every entry are put into tables of bytes,
        which the codes of 64 rows look up in registers (AVX-512 VBMI); otherwise codes are decoded
        into panels of int8 that all tokens are multiplied by.""",
    kernels=("any CPU", "AVX2", "AVX-512", "AVX-512 VNNI", "NEON dot product", "CUDA"),
)
