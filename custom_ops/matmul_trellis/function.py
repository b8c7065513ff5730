"""What ``onnxq.MatMulTrellis`` means: states out of bits, their values by arithmetic, a product.

A state begins at the bits of its step and reaches at most two bytes into the bits of the row behind
its own, which is the first row of the tile behind the last one: the bytes of both are laid side by
side. The values of all 2^state_bits states are made once, by the whole-number arithmetic of
`onnxq.numerics.trellis`, and looked up. Both are folded as a session begins. With
``activation_bits`` 8 a token is rounded to int8 as `onnxq.custom_ops.matmul_int` rounds it; with 32
it stays in float32.
"""

from __future__ import annotations

from onnxq.custom_ops.spec import OperatorSpec
from onnxq.formats import Format
from onnxq.formats.trellis import TILE, TrellisFormat
from onnxq.numerics import _native
from onnxq.numerics.trellis import CODES

__all__ = ["MATMUL_TRELLIS"]

_SIZES, _FACTOR = _native.trellis_hybrid()

_BODY = f"""
MatMulTrellis <rows, columns, code, step_bits, state_bits, activation_bits>
              (A, codes, scales) => (Y) {{
    row_count = Constant<value_int: int = @rows>()
    column_count = Constant<value_int: int = @columns>()
    which = Constant<value_int: int = @code>()
    step = Constant<value_int: int = @step_bits>()
    state = Constant<value_int: int = @state_bits>()
    a_bits = Constant<value_int: int = @activation_bits>()
    zero = Constant<value = int64 {{0}}>()
    one = Constant<value = int64 {{1}}>()
    two = Constant<value = int64 {{2}}>()
    eight = Constant<value = int64 {{8}}>()
    sixteen = Constant<value = int64 {{16}}>()
    byte = Constant<value = int64 {{256}}>()
    half = Constant<value = int64 {{65536}}>()
    word = Constant<value = int64 {{4294967296}}>()
    first = Constant<value = int64[1] {{0}}>()
    second = Constant<value = int64[1] {{1}}>()
    third = Constant<value = int64[1] {{2}}>()
    any = Constant<value = int64[1] {{-1}}>()
    is_one_mad = Equal(which, zero)
    is_pair = Equal(which, two)

    state_count = Pow(two, state)
    states = Range(zero, state_count, one)
    state_column = Unsqueeze(states, second)
    factors = Constant<value = int64[3] {{34038481, 89226354, {_FACTOR}}}>()
    addends = Constant<value = int64[3] {{{0x04910000}, {0x03D40000}, 0}}>()
    factor = Gather<axis = 0>(factors, which)
    addend = Gather<axis = 0>(addends, which)
    product = Mul(state_column, factor)
    mixed_wide = Add(product, addend)
    mixed = Mod(mixed_wide, word)
    byte_powers = Constant<value = int64[4] {{1, 256, 65536, 16777216}}>()
    byte_shifted = Div(mixed, byte_powers)
    bytes = Mod(byte_shifted, byte)
    byte_sum = ReduceSum<keepdims = 1>(bytes, second)
    mean = Constant<value = int64 {{510}}>()
    one_mad = Sub(byte_sum, mean)

    half_powers = Constant<value = int64[2] {{1, 65536}}>()
    half_shifted = Div(mixed, half_powers)
    halves = Mod(half_shifted, half)
    kept = Constant<value = int64 {{{0x8FFF}}}>()
    flipped = Constant<value = int64 {{{0x3B60}}}>()
    halves_kept = BitwiseAnd(halves, kept)
    numbers = BitwiseXor(halves_kept, flipped)
    mantissas = Constant<value = int64 {{1024}}>()
    four = Constant<value = int64 {{4}}>()
    sign_bit = Constant<value = int64 {{32768}}>()
    fraction = Mod(numbers, mantissas)
    mantissa = Add(fraction, mantissas)
    exponent_high = Div(numbers, mantissas)
    exponent = Mod(exponent_high, four)
    exponent_power = Pow(two, exponent)
    size = Mul(mantissa, exponent_power)
    is_minus = GreaterOrEqual(numbers, sign_bit)
    size_minus = Neg(size)
    signed = Where(is_minus, size_minus, size)
    three_inst = ReduceSum<keepdims = 1>(signed, second)

    pair_powers = Constant<value = int64[2] {{65536, 16777216}}>()
    signed_byte = Constant<value = int64 {{128}}>()
    pair_shifted = Div(mixed, pair_powers)
    pair_places = Mod(pair_shifted, signed_byte)
    magnitudes = Constant<value = int64[64] {{{", ".join(map(str, _SIZES))}}}>()
    magnitudes_minus = Neg(magnitudes)
    table = Concat<axis = 0>(magnitudes, magnitudes_minus)
    hybrid = Gather<axis = 0>(table, pair_places)

    single = Where(is_one_mad, one_mad, three_inst)
    all_values = Where(is_pair, hybrid, single)
    vector = Where(is_pair, two, one)
    vector_at = Unsqueeze(vector, first)
    value_end = Concat<axis = 0>(vector_at)
    values_whole = Slice(all_values, first, value_end, second)
    units = Constant<value = float[3] {{{", ".join(str(CODES[c].unit) for c in CODES)}}}>()
    unit = Gather<axis = 0>(units, which)
    values = Cast<to = 1>(values_whole)

    row_at = Unsqueeze(row_count, first)
    steps = Div(sixteen, vector)
    run_bits = Mul(steps, step)
    run = Div(run_bits, eight)
    run_at = Unsqueeze(run, first)
    run_shape = Concat<axis = 0>(row_at, any, run_at)
    runs = Reshape(codes, run_shape)
    row_numbers = Range(zero, row_count, one)
    rows_behind = Add(row_numbers, one)
    places = Mod(rows_behind, sixteen)
    is_next_tile = Equal(places, zero)
    is_past_end = Equal(rows_behind, row_count)
    is_past_tile = Or(is_next_tile, is_past_end)
    place = Mod(row_numbers, sixteen)
    tile_first = Sub(row_numbers, place)
    row_behind = Where(is_past_tile, tile_first, rows_behind)
    runs_behind = Gather<axis = 0>(runs, row_behind)
    reached = Slice(runs_behind, first, third, third)
    no_byte = CastLike(zero, codes)
    no_bytes_shape = Shape<start = 0, end = 2>(reached)
    no_bytes_rank = Concat<axis = 0>(no_bytes_shape, second)
    no_bytes = Expand(no_byte, no_bytes_rank)
    ring_bytes = Concat<axis = 2>(runs, reached, no_bytes)
    ring = Cast<to = 6>(ring_bytes)
    step_numbers = Range(zero, steps, one)
    bit = Mul(step_numbers, step)
    byte_at = Div(bit, eight)
    byte_behind = Add(byte_at, one)
    byte_last = Add(byte_at, two)
    shift = Mod(bit, eight)
    divisor_wide = Pow(two, shift)
    divisor = Cast<to = 6>(divisor_wide)
    low = Gather<axis = 2>(ring, byte_at)
    middle = Gather<axis = 2>(ring, byte_behind)
    high = Gather<axis = 2>(ring, byte_last)
    byte_short = Cast<to = 6>(byte)
    half_short = Cast<to = 6>(half)
    middle_part = Mul(middle, byte_short)
    high_part = Mul(high, half_short)
    two_bytes = Add(low, middle_part)
    three_bytes = Add(two_bytes, high_part)
    window = Div(three_bytes, divisor)
    state_limit = Cast<to = 6>(state_count)
    found = Mod(window, state_limit)
    points = Gather<axis = 0>(values, found)
    weight_at = Unsqueeze(column_count, first)
    weight_shape = Concat<axis = 0>(row_at, weight_at)
    whole = Reshape(points, weight_shape)
    whole_turned = Transpose<perm = [1, 0]>(whole)
    scale = Cast<to = 1>(scales)
    whole_scale = Mul(scale, unit)
    row_scales = Reshape(whole_scale, any)

    a = Cast<to = 1>(A)
    most = Constant<value = float {{127}}>()
    least = Constant<value = float {{7.888609052210118e-31}}>()
    f_one = Constant<value = float {{1}}>()
    magnitude = Abs(a)
    peak = ReduceMax<keepdims = 1>(magnitude, any)
    largest = Max(peak, least)
    inverse = Div(most, largest)
    stretched = Mul(a, inverse)
    rounded = Round(stretched)
    rounded_scale = Div(largest, most)
    is_rounded = Equal(a_bits, eight)
    token = Where(is_rounded, rounded, a)
    token_scale = Where(is_rounded, rounded_scale, f_one)
    sums = MatMul(token, whole_turned)
    sums_of_rows = Mul(sums, row_scales)
    y = Mul(sums_of_rows, token_scale)
    Y = CastLike(y, A)
}}
"""


def _attributes(fmt: Format, shape: tuple[int, int]) -> dict[str, int]:
    if not isinstance(fmt, TrellisFormat):
        raise TypeError(f"MatMulTrellis multiplies by paths through trellises, and {fmt} has none")
    return {
        "rows": shape[0],
        "columns": shape[1],
        "code": list(CODES).index(fmt.code),
        "step_bits": fmt.trellis.step_bits,
        "state_bits": fmt.state_bits,
        "activation_bits": 8,
    }


MATMUL_TRELLIS = OperatorSpec(
    name="MatMulTrellis",
    formats=(TrellisFormat,),
    arrays=("codes", "scales"),
    attributes=_attributes,
    body=_BODY,
    lowest_opset=18,
    summary=f"""Paths through trellises in tiles of {TILE} rows and columns, whose weights are
        computed from the bits of their states, sixteen rows at a time in registers. With
        `activation_bits` 8 tokens are rounded to int8 inside, one scale for each, and products are
        summed exactly over 512 columns, then in float32; with 32 activations stay in float32. More
        than four tokens share what is decoded.""",
    kernels=("any CPU", "AVX2", "AVX-512", "AVX-512 VNNI", "CUDA"),
)
