"""What holds of every product of the CUDA kernels, wherever they run."""

import numpy as np

from tests.gpu.kernels import Weight, rounded

FORMATS = (
    "int1_g32_asym",
    "int2_g64",
    "int3_g20_asym",
    "int4_g128_asym_f16",
    "int4_g24",
    "int4_g32_two",
    "int5",
    "int6_tensor_asym",
    "int7_g8_asym",
    "int8_g256",
    "lut1_g64",
    "lut2",
    "lut3_g12",
    "lut4",
    "lut3_f16",
    "nf4_g64",
    "fp4_g32_f16",
    "lut4_tensor",
    "vq_d1n16",
    "vq_d2n16_g128",
    "vq_d2n64",
    "vq_d4n256",
    "vq_d4n256_g12",
    "vq_d4n4096_b64x64",
    "aq_m2d8n256",
    "aq_m3d4n64_tensor",
    "e8p2",
    "e8p3_tensor",
    "e8p4",
    "ternary",
    "ternary_g12_f16",
    "ternary2_tensor",
    "ternary2_g64",
    "trellis1_1mad_l10",
    "trellis2_1mad",
    "trellis3_3inst",
    "trellis4_3inst_tensor",
    "trellis2_hyb",
    "trellis2.5_hyb",
    "trellis4_hyb_l14",
)
TOKENS = (1, 2, 7, 128)

_UNITS = {np.float32: 2.0**-24, np.float16: 2.0**-11}


def shape_of(fmt: str) -> tuple[int, int]:
    """Odd rows; columns that no vector divides, as far as the format allows."""
    if fmt.startswith("trellis"):
        return 37, 208
    if fmt.startswith(("e8p", "aq_m2d8")):
        return 67, 200
    if fmt.startswith(("vq", "aq")):
        return 67, 204
    return 67, 203


def draw(*shape, seed=0):
    """Normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check_codes(weight: Weight) -> None:
    """Products with unit vectors are the decoded weight, every bit of it."""
    columns = weight.shape[1]
    unit = np.eye(columns, dtype=np.float32)
    found = np.concatenate([weight.multiply(unit[at : at + 8]) for at in range(0, columns, 8)])
    np.testing.assert_array_equal(found.T, weight.decoded)


def bound(a, decoded, dtype, tokens):
    """Error of a product in its element type: [tokens, rows].

    Sums are float32 in some order: columns · 2^-24 times the sum of magnitudes. Tensor cores first
    round both factors, to float16 or to the 11 bits of TF32. float16 results are rounded once.
    """
    magnitudes = np.abs(a) @ np.abs(decoded).T.astype(np.float64)
    factors = 2 * 2.0**-11 if tokens > 8 else 0.0
    error = (a.shape[1] * 2.0**-24 + factors) * magnitudes
    if dtype == np.float16:
        # Below 2^-14 float16 has steps of 2^-24: of products, and of weights and activations.
        error = error * (1 + 2.0**-11) + 2.0**-11 * np.abs(a @ decoded.T) + 2.0**-25
        if tokens > 8:
            error += 2.0**-25 * (np.abs(a).sum(1)[:, None] + np.abs(decoded).sum(1)[None])
    return error


def check_products(weight: Weight, tokens: int, dtype, activation_bits: int, seed=1) -> None:
    """Products are those of float64, up to the rounding of what is multiplied."""
    a = draw(tokens, weight.shape[1], seed=seed).astype(dtype)
    a[-1] *= dtype(0.01)
    seen = a.astype(np.float64) if activation_bits == 32 else rounded(a, weight.span)
    decoded = weight.decoded.astype(np.float64)
    found = weight.multiply(a, activation_bits=activation_bits)
    off = np.abs(found - seen @ decoded.T)
    assert (off <= bound(seen, decoded, dtype, tokens)).all(), off.max()
