"""What ``onnxq.MatMulTernary`` means, in standard operators: planes of trits times rounded tokens.

Each token a of A is rounded to int8: ``q = round(a · (127 / m))``, ties to even, for its largest
magnitude m, at least 2⁻¹⁰⁰; what it stands for is ``q · (m / 127)``. With scales s[row, plane,
group] and trits t in {-1, 0, 1} ::

    Y[token, row] = m / 127 · Σ_plane Σ_group s[row, plane, group] · Σ_column q[column] t[column]

The inner sums are whole numbers. Codes and scales are those of `onnxq.formats.ternary`: bytes are
numbers of five digits to the base 3, the lowest first, each a trit and 1.
"""

from __future__ import annotations

from onnxq.custom_ops.functions import rounded_product
from onnxq.custom_ops.spec import OperatorSpec
from onnxq.formats import Format
from onnxq.formats.ternary import TernaryFormat

__all__ = ["MATMUL_TERNARY"]

_INT32 = 2**31 - 1

_BODY = (
    """
MatMulTernary <rows, columns, group, planes, activation_bits> (A, codes, scales) => (Y) {
    nothing = Constant<value = int64 {0}>()
    same = Constant<value = int64[1] {0}>()
    rest = Constant<value = int64[1] {-1}>()
    first = Constant<value = int64[1] {1}>()
    last_axis = Constant<value = int64[1] {2}>()
    single = Constant<value = int64 {1}>()
    powers = Constant<value = int32[5] {1, 3, 9, 27, 81}>()
    three = Constant<value = int32 {3}>()
    one = Constant<value = int32 {1}>()
    most = Constant<value = float {127}>()
    least = Constant<value = float {7.888609052210118e-31}>()

    plane_count = Constant<value_int: int = @planes>()
    across = Constant<value_int: int = @columns>()
    group_size = Constant<value_int: int = @group>()
    plane_axis = Reshape(plane_count, first)
    column_end = Reshape(across, first)
    split = Concat<axis = 0>(same, plane_axis, rest)

    bytes = Cast<to = 6>(codes)
    each = Unsqueeze(bytes, rest)
    shifted = Div(each, powers)
    digits = Mod(shifted, three)
    stored = Sub(digits, one)
    in_planes = Reshape(stored, split)
    trits = Slice(in_planes, same, column_end, last_axis)
    trit_values = Cast<to = 1>(trits)

    wide = Cast<to = 1>(scales)
    grouped = Reshape(wide, split)
    number = Range(nothing, across, single)
    group_of_column = Div(number, group_size)
    spread = Gather<axis = 2>(grouped, group_of_column)
    products = Mul(trit_values, spread)
    weight = ReduceSum<keepdims = 0>(products, first)
    weight_turned = Transpose<perm = [1, 0]>(weight)

"""
    + rounded_product("rest")
    + "}\n"
)


def _attributes(fmt: Format, shape: tuple[int, int]) -> dict[str, int]:
    found = _ternary(fmt)
    return {
        "rows": shape[0],
        "columns": shape[1],
        "group": min(found.group_size(shape[1]), shape[1]),
        "planes": found.planes,
        "activation_bits": 8,
    }


def _refusal(fmt: Format, shape: tuple[int, int]) -> str | None:
    """Digits of 0, 1 and 2 times int8 that are summed as whole numbers must fit int32."""
    found = _ternary(fmt)
    summed = min(found.group_size(shape[1]), shape[1])
    if summed * 127 * 2 > _INT32:
        return (
            f"sums of {summed} products of {fmt} with int8 do not fit int32, which MatMulTernary "
            "adds them in; choose smaller groups"
        )
    return None


def _ternary(fmt: Format) -> TernaryFormat:
    if not isinstance(fmt, TernaryFormat):
        raise TypeError(f"MatMulTernary multiplies by trits, and {fmt} has none")
    return fmt


MATMUL_TERNARY = OperatorSpec(
    name="MatMulTernary",
    formats=(TernaryFormat,),
    arrays=("codes", "scales"),
    attributes=_attributes,
    body=_BODY,
    lowest_opset=18,
    summary="""One plane of trits, as BitNet b1.58 has, or the sum of two, as PTQTP, times tokens
        rounded to int8 inside, one scale for each token. Products are summed exactly in int32 over
        what shares a scale. Codes are stored in 1.6 bits a trit, and held in 1.67 bits where
        kernels are AVX-512 VNNI, in 2 bits elsewhere; scales are float32 or float16.""",
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
)
