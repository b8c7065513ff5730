"""Element types: Cast, CastLike, Constant, and tensors of the graph as torch tensors.

Torch has no types below 8 bits, so int2 and int4 live in int8, uint2 and uint4 in uint8, and
float4 in float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from onnxq.errors import UnsupportedGraph
from onnxq.learning.operators.table import Call, Result, Tensor, operator

__all__ = ["as_float", "cast", "integer_range", "tensor_of", "torch_type"]

_TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.FLOAT4E2M1: torch.float32,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}
_VIEWED = {
    ir.DataType.BFLOAT16: np.int16,
    ir.DataType.FLOAT8E4M3FN: np.uint8,
    ir.DataType.FLOAT8E5M2: np.uint8,
    ir.DataType.FLOAT8E4M3FNUZ: np.uint8,
    ir.DataType.FLOAT8E5M2FNUZ: np.uint8,
}
_COMPUTED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_BITS = {
    ir.DataType.INT2: (-2, 1),
    ir.DataType.UINT2: (0, 3),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
}


def torch_type(dtype: ir.DataType, compute: torch.dtype | None = None) -> torch.dtype:
    """The torch type that holds an ONNX type, ``compute`` in place of the float types.

    Raises:
        UnsupportedGraph: torch has no such type (strings, complex numbers).
    """
    found = _TYPES.get(dtype)
    if found is None:
        raise UnsupportedGraph(
            f"Tensors of type {dtype.name} cannot be run in torch. Choose inputs and outputs that "
            "leave them out."
        )
    return compute if compute is not None and found in _COMPUTED else found


def tensor_of(array: np.ndarray, dtype: ir.DataType, compute: torch.dtype | None = None) -> Tensor:
    """A tensor of the graph as a torch tensor of its own memory.

    Args:
        array: content in ``dtype.numpy()``, owned by the caller.
        dtype: its ONNX type.
        compute: takes the place of the float types.
    """
    wanted = torch_type(dtype, compute)
    if dtype in (ir.DataType.INT4, ir.DataType.INT2):
        array = array.astype(np.int8)
    elif dtype in (ir.DataType.UINT4, ir.DataType.UINT2):
        array = array.astype(np.uint8)
    elif dtype == ir.DataType.FLOAT4E2M1:
        array = array.astype(np.float32)
    # A scalar of ml_dtypes cannot be viewed, an array of one element can.
    shape = array.shape
    flat = np.ascontiguousarray(array).reshape(-1)
    if dtype in _VIEWED:
        stored = torch.from_numpy(flat.view(_VIEWED[dtype])).view(_TYPES[dtype])
    else:
        # NumPy has two names for some types of one size, and torch knows one of them.
        stored = torch.from_numpy(flat.view(np.dtype(flat.dtype.str)))
    return stored.reshape(shape).to(wanted)


def integer_range(dtype: ir.DataType) -> tuple[int, int] | None:
    """Least and greatest value of an integer type to quantize to; None for any other."""
    return _BITS.get(dtype)


def as_float(tensor: Tensor) -> Tensor:
    """The tensor in at least float32, for steps that a runtime computes in float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def cast(call: Call, tensor: Tensor, dtype: ir.DataType) -> Tensor:
    """The tensor as an ONNX type; between float types the gradient passes through.

    Raises:
        UnsupportedGraph: a float of 8 bits or any type of fewer is asked for: torch rounds to the
            first by rules of its own and has none of the others.
    """
    if dtype.bitwidth < 8 or dtype.name.startswith("FLOAT8") or dtype == ir.DataType.STRING:
        raise call.refusal(f"a cast to {dtype.name} is not computed")
    return tensor.to(torch_type(dtype, call.compute))


@operator("Cast")
def _cast(call: Call, x: Tensor) -> Result:
    return cast(call, x, ir.DataType(call.attribute("to")))


@operator("CastLike")
def _cast_like(call: Call, x: Tensor, like: Tensor) -> Result:
    dtype = call.type_of(1)
    return x.to(like.dtype) if dtype is None else cast(call, x, dtype)


@operator("Constant")
def _constant(call: Call) -> Result:
    value = call.attribute("value")
    if value is not None:
        return tensor_of(np.array(value.numpy()), value.dtype, call.compute)
    for name, dtype in (("value_float", torch.float32), ("value_floats", torch.float32)):
        if call.attribute(name) is not None:
            return torch.tensor(call.attribute(name), dtype=call.compute or dtype)
    for name in ("value_int", "value_ints"):
        if call.attribute(name) is not None:
            return torch.tensor(call.attribute(name), dtype=torch.int64)
    raise call.refusal("its value is a string or a sparse tensor")
