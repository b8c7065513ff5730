import numpy as np
import onnx_ir as ir
import pytest

from onnxq.formats import pack_codes, packed_size, unpack_codes


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("signed", (True, False))
def test_round_trip_and_size(bits, signed):
    rng = np.random.default_rng(bits)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    for shape in [(1,), (7,), (3, 8), (2, 3, 11), (4, 0)]:
        codes = rng.integers(low, high, shape).astype(np.int8 if signed else np.uint8)
        packed = pack_codes(codes, bits)
        assert packed.dtype == np.uint8
        assert packed.shape == (*shape[:-1], packed_size(shape[-1], bits))
        assert np.array_equal(unpack_codes(packed, bits, shape[-1], signed=signed), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_element_i_lies_at_bit_i_times_bits(bits):
    codes = np.random.default_rng(0).integers(0, 2**bits, 29).astype(np.uint8)
    number = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    assert pack_codes(codes, bits).tobytes() == number.to_bytes(packed_size(29, bits), "little")


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("INT4", 4), ("UINT4", 4), ("INT2", 2), ("UINT2", 2)],
)
def test_flattened_codes_are_the_bytes_of_an_onnx_tensor(dtype, bits):
    signed = dtype.startswith("I")
    low = -(2 ** (bits - 1)) if signed else 0
    codes = np.random.default_rng(1).integers(low, low + 2**bits, (3, 5))
    codes = codes.astype(np.int8 if signed else np.uint8)
    kind = ir.DataType[dtype]
    tensor = ir.Tensor(codes.astype(kind.numpy()), dtype=kind)
    assert pack_codes(codes.reshape(-1), bits).tobytes() == tensor.tobytes()
