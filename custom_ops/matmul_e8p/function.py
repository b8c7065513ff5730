"""What ``onnxq.MatMulE8P`` means: points of E8P by small tables and signs, and a product.

A weight is ``scales · number / unit``, the numbers being those of `onnxq.numerics.e8p`: for the two
bytes of a code, with magnitudes m and signs σ in quarters of the lattice, ``gain · (σ ∘ m ± 1)``.
Both tables of 256 × 8 are made by the rules that number the points, and folded as a session begins:

- of patterns: the magnitudes, the eighth one negative where the pattern takes an odd number of
  minus signs, so that the eighth sign is the product of the other seven;
- of signs: ±1 for each of the seven bits, and their product.

The second stage of four bits takes the same tables, that of three bits a third one. With
``activation_bits`` 8 a token is rounded to int8 as `onnxq.custom_ops.matmul_int` rounds it, and the
products with whole numbers are summed exactly; with 32 it stays in float32.
"""

from __future__ import annotations

from onnxq.custom_ops.spec import OperatorSpec
from onnxq.formats import Format
from onnxq.formats.e8p import E8pFormat

__all__ = ["MATMUL_E8P"]

MOST_COLUMNS = 2**17
"""127 · 127 · columns fits int32."""

_BODY = """
MatMulE8P <rows, columns, bits, activation_bits> (A, codes, scales) => (Y) {
    row_count = Constant<value_int: int = @rows>()
    stored_bits = Constant<value_int: int = @bits>()
    a_bits = Constant<value_int: int = @activation_bits>()
    zero = Constant<value = int64 {0}>()
    one = Constant<value = int64 {1}>()
    two = Constant<value = int64 {2}>()
    three = Constant<value = int64 {3}>()
    four = Constant<value = int64 {4}>()
    seven = Constant<value = int64 {7}>()
    eight = Constant<value = int64 {8}>()
    first = Constant<value = int64[1] {0}>()
    second = Constant<value = int64[1] {1}>()
    third = Constant<value = int64[1] {2}>()
    seven_at = Constant<value = int64[1] {7}>()
    eight_at = Constant<value = int64[1] {8}>()
    any = Constant<value = int64[1] {-1}>()
    f_zero = Constant<value = float {0}>()
    f_one = Constant<value = float {1}>()
    f_two = Constant<value = float {2}>()

    places = Range(zero, eight, one)
    place_values = Constant<value = int64[8] {1, 2, 4, 8, 16, 32, 64, 128}>()
    bytes = Constant<value = int64 {256}>()
    masks = Range(zero, bytes, one)
    mask_column = Unsqueeze(masks, second)
    mask_shifted = Div(mask_column, place_values)
    mask_bits = Mod(mask_shifted, two)
    mask_count = ReduceSum<keepdims = 0>(mask_bits, second)
    high_places = Constant<value = int64[8] {0, 0, 0, 0, 1, 1, 1, 1}>()
    halves = Sub(one, mask_bits)
    high_halves = Mul(halves, high_places)
    high_count = ReduceSum<keepdims = 0>(high_halves, second)
    high_odd = Mod(high_count, two)
    is_high_even = Equal(high_odd, zero)
    last_mask = Constant<value = int64 {115}>()
    is_last = Equal(masks, last_mask)
    is_of_five = Or(is_high_even, is_last)
    five = Constant<value = int64 {5}>()
    has_five = Equal(mask_count, five)
    is_long_pattern = And(is_of_five, has_five)
    is_short_pattern = Less(mask_count, five)
    is_pattern = Or(is_short_pattern, is_long_pattern)
    pattern_bits = Compress<axis = 0>(mask_bits, is_pattern)
    eighths = Constant<value = int64 {64}>()
    pairs = Range(zero, eighths, one)
    pair_first = Div(pairs, eight)
    pair_second = Mod(pairs, eight)
    pair_first_column = Unsqueeze(pair_first, second)
    pair_second_column = Unsqueeze(pair_second, second)
    at_first = Equal(pair_first_column, places)
    at_second = Equal(pair_second_column, places)
    at_either = Or(at_first, at_second)
    pair_fives = Cast<to = 7>(at_first)
    pair_bits = Cast<to = 7>(at_either)
    pair_magnitudes = Add(pair_bits, pair_fives)
    steps = Concat<axis = 0>(pair_magnitudes, pattern_bits)
    steps_of_four = Mul(steps, four)
    magnitudes = Add(steps_of_four, two)
    is_three = Equal(steps, one)
    threes = Cast<to = 7>(is_three)
    three_count = ReduceSum<keepdims = 1>(threes, second)
    odd = Mod(three_count, two)
    odd_twice = Mul(odd, two)
    odd_sign = Sub(one, odd_twice)
    is_eighth = Equal(places, seven)
    eighth_sign = Where(is_eighth, odd_sign, one)
    signed_magnitudes = Mul(magnitudes, eighth_sign)
    pattern_table = Cast<to = 1>(signed_magnitudes)
    squares = Mul(magnitudes, magnitudes)
    square = ReduceSum<keepdims = 1>(squares, second)
    shortest_long = Constant<value = int64 {160}>()
    is_long = GreaterOrEqual(square, shortest_long)
    is_two_bits = Equal(stored_bits, two)
    is_farther = And(is_long, is_two_bits)
    longer = Where(is_farther, f_one, f_zero)

    is_place_of_seven = Less(places, seven)
    seven_bits = Where(is_place_of_seven, mask_bits, zero)
    minus_count = ReduceSum<keepdims = 1>(seven_bits, second)
    minus_odd = Mod(minus_count, two)
    sign_bits = Where(is_eighth, minus_odd, mask_bits)
    sign_bits_twice = Mul(sign_bits, two)
    signs = Sub(one, sign_bits_twice)
    sign_table = Cast<to = 1>(signs)
    shift_wide = Slice(mask_bits, seven_at, eight_at, second)
    shift_bits = Cast<to = 1>(shift_wide)
    shift_twice = Mul(shift_bits, f_two)
    shift_table = Sub(shift_twice, f_one)

    half_mask_count = Constant<value = int64[1] {128}>()
    bit_signs = Slice(signs, first, half_mask_count, first)
    is_ordered = Less(pair_first, pair_second)
    ordered_first = Compress<axis = 0>(at_first, is_ordered)
    ordered_second = Compress<axis = 0>(at_second, is_ordered)
    ordered_first_ones = Cast<to = 7>(ordered_first)
    ordered_second_ones = Cast<to = 7>(ordered_second)
    first_ones = Unsqueeze(ordered_first_ones, second)
    second_ones = Unsqueeze(ordered_second_ones, second)
    first_signs = Constant<value = int64[1, 4, 1] {2, -2, 2, -2}>()
    second_signs = Constant<value = int64[1, 4, 1] {2, 2, -2, -2}>()
    first_points = Mul(first_ones, first_signs)
    second_points = Mul(second_ones, second_signs)
    two_points = Add(first_points, second_points)
    row_of_eight = Constant<value = int64[2] {-1, 8}>()
    pair_points = Reshape(two_points, row_of_eight)
    no_point = Constant<value = int64[1, 8] {0, 0, 0, 0, 0, 0, 0, 0}>()
    place_column = Unsqueeze(places, second)
    at_place = Equal(place_column, places)
    at_place_ones = Cast<to = 7>(at_place)
    axis_points = Mul(at_place_ones, four)
    axis_negative = Neg(axis_points)
    axis_seven = Slice(axis_negative, first, seven_at, first)
    bit_rows = Concat<axis = 0>(bit_signs, pair_points, no_point, axis_points, axis_seven)
    bit_table = Cast<to = 1>(bit_rows)

    bits_at = Unsqueeze(stored_bits, first)
    row_at = Unsqueeze(row_count, first)
    vector_shape = Concat<axis = 0>(row_at, any, bits_at)
    vectors = Reshape(codes, vector_shape)
    stages = Div(bits_at, third)
    lattice_bytes = Mul(stages, third)
    lattice_codes = Slice(vectors, first, lattice_bytes, third)
    stage_shape = Concat<axis = 0>(row_at, any, stages, third)
    stage_codes = Reshape(lattice_codes, stage_shape)
    stage_ints = Cast<to = 6>(stage_codes)
    sign_codes = Gather<axis = 3>(stage_ints, zero)
    pattern_codes = Gather<axis = 3>(stage_ints, one)
    stage_magnitudes = Gather<axis = 0>(pattern_table, pattern_codes)
    stage_signs = Gather<axis = 0>(sign_table, sign_codes)
    stage_shifts = Gather<axis = 0>(shift_table, sign_codes)
    signed = Mul(stage_magnitudes, stage_signs)
    shifted = Add(signed, stage_shifts)
    both_gains = Constant<value = float[2, 1] {7, 2}>()
    some_gains = Slice(both_gains, first, stages, first)
    is_three_bits = Equal(stored_bits, three)
    stage_gains = Where(is_three_bits, f_one, some_gains)
    pattern_longer = Gather<axis = 0>(longer, pattern_codes)
    gains = Add(stage_gains, pattern_longer)
    lattice = Mul(shifted, gains)
    bit_codes = Slice(vectors, lattice_bytes, bits_at, third)
    bit_ints = Cast<to = 6>(bit_codes)
    bit_points = Gather<axis = 0>(bit_table, bit_ints)
    all_points = Concat<axis = 2>(lattice, bit_points)
    points = ReduceSum<keepdims = 0>(all_points, third)
    row_shape = Concat<axis = 0>(row_at, any)
    numbers = Reshape(points, row_shape)
    numbers_turned = Transpose<perm = [1, 0]>(numbers)
    unit_of_three = Constant<value = float {0.25}>()
    unit_of_others = Constant<value = float {0.035714285714285714}>()
    unit = Where(is_three_bits, unit_of_three, unit_of_others)
    scale = Cast<to = 1>(scales)
    number_scale = Mul(scale, unit)
    row_scales = Reshape(number_scale, any)

    a = Cast<to = 1>(A)
    most = Constant<value = float {127}>()
    least = Constant<value = float {7.888609052210118e-31}>()
    magnitude = Abs(a)
    found = ReduceMax<keepdims = 1>(magnitude, any)
    largest = Max(found, least)
    inverse = Div(most, largest)
    stretched = Mul(a, inverse)
    rounded = Round(stretched)
    rounded_scale = Div(largest, most)
    is_rounded = Equal(a_bits, eight)
    token = Where(is_rounded, rounded, a)
    token_scale = Where(is_rounded, rounded_scale, f_one)
    product = MatMul(token, numbers_turned)
    product_of_rows = Mul(product, row_scales)
    y = Mul(product_of_rows, token_scale)
    Y = CastLike(y, A)
}
"""


def _attributes(fmt: Format, shape: tuple[int, int]) -> dict[str, int]:
    if not isinstance(fmt, E8pFormat):
        raise TypeError(f"MatMulE8P multiplies by points of E8P, and {fmt} has none")
    return {"rows": shape[0], "columns": shape[1], "bits": fmt.bits, "activation_bits": 8}


def _refusal(fmt: Format, shape: tuple[int, int]) -> str | None:
    del fmt
    if shape[1] > MOST_COLUMNS:
        return f"MatMulE8P sums at most {MOST_COLUMNS} products in int32, not {shape[1]}"
    return None


MATMUL_E8P = OperatorSpec(
    name="MatMulE8P",
    formats=(E8pFormat,),
    arrays=("codes", "scales"),
    attributes=_attributes,
    body=_BODY,
    lowest_opset=18,
    summary="""Points of E8P at 2, 3 or 4 bits, decoded by arithmetic: a weight is a whole number
        within int8 times the scale of its row. With `activation_bits` 8 tokens are rounded to
        int8 inside, one scale for each, and products are summed exactly in int32; with 32
        activations stay in float32, which is slower. In memory a weight takes the bits that it is
        stored in: with AVX-512 VNNI one or two rounded tokens are multiplied from masks of bits,
        without decoding to bytes; more tokens, and other kernels, decode a few rows at a time.""",
    kernels=("any CPU", "AVX2", "AVX-512", "AVX-512 VNNI", "CUDA"),
    refusal=_refusal,
)
