"""The kernels of CUDA, called as a program in any language calls them: C functions and structs.

`Kernels` is a library of them, `Calls` the products of one stored weight. The same calls run on a
GPU (`tests.gpu.driver`) and, compiled as C++, on the CPU (`tests.gpu.on_cpu`).
"""

import contextlib
import ctypes

import numpy as np

from onnxq.formats import Format, parse_format
from onnxq.formats.codebook import CodebookFormat
from onnxq.formats.e8p import E8pFormat
from onnxq.formats.lut import LutFormat
from onnxq.formats.ternary import TernaryFormat
from onnxq.formats.trellis import TrellisFormat
from onnxq.formats.uniform import IntFormat
from onnxq.numerics.trellis import CODES

SPAN_OF_LUT = 128  # columns that share a scale of activations (MatMulLut)

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class Call(ctypes.Structure):
    """``onnxq_matmul`` of matmul_cuda.h."""

    _fields_ = (
        [(name, _POINTER) for name in ("a", "y")]
        + [(name, _LONG) for name in ("tokens", "rows", "columns")]
        + [(name, _INT) for name in ("is_half", "activation_bits", "activation_span")]
    )


def _struct(name, pointers, longs, ints):
    fields = [(field, _POINTER) for field in pointers.split()]
    fields += [(field, _LONG) for field in longs.split()]
    fields += [(field, _INT) for field in ints.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Int = _struct(
    "Int",
    "codes scales ratios zeros",
    "group scale_rows scale_groups zero_rows",
    "bits is_signed is_half",
)
Lut = _struct(
    "Lut", "codes lut scales", "group lut_rows lut_groups scale_rows scale_groups", "bits is_half"
)
Codebook = _struct(
    "Codebook",
    "codes codebook scales",
    "group scale_rows block_rows block_columns",
    "dimension code_bits books",
)
E8p = _struct("E8p", "codes scales", "scale_rows", "bits")
Ternary = _struct("Ternary", "codes scales", "group scale_rows", "planes is_half")
Trellis = _struct("Trellis", "codes scales", "scale_rows", "step_bits state_bits code")


def _stored(fmt: Format, packed, shape):
    """The name of the operator, its struct without pointers, and the arrays that it points to."""
    columns = shape[1]
    if isinstance(fmt, IntFormat):
        zeros = packed.get("zeros")
        down, across = packed["scales"].shape
        numbers = Int(
            group=min(fmt.group_size(columns), columns),
            scale_rows=down,
            scale_groups=across,
            zero_rows=1 if zeros is None else len(zeros),
            bits=fmt.bits,
            is_signed=fmt.symmetric,
            is_half=packed["scales"].dtype == np.float16,
        )
        return "int", numbers, packed
    if isinstance(fmt, LutFormat):
        lut, scales = packed["lut"], packed["scales"]
        numbers = Lut(
            group=fmt.group_size(columns),
            lut_rows=lut.shape[0],
            lut_groups=lut.shape[1],
            scale_rows=scales.shape[0],
            scale_groups=scales.shape[1],
            bits=fmt.bits,
            is_half=fmt.table_dtype == "float16",
        )
        return "lut", numbers, packed
    scale_rows = len(packed["scales"])
    if isinstance(fmt, CodebookFormat):
        block = fmt.block_shape(*shape)
        numbers = Codebook(
            group=fmt.group_size(columns),
            scale_rows=scale_rows,
            block_rows=block[0],
            block_columns=block[1],
            dimension=fmt.dimension,
            code_bits=fmt.code_bits,
            books=fmt.books,
        )
        return "codebook", numbers, packed
    if isinstance(fmt, E8pFormat):
        return "e8p", E8p(scale_rows=scale_rows, bits=fmt.bits), packed
    if isinstance(fmt, TernaryFormat):
        numbers = Ternary(
            group=fmt.group_size(columns),
            scale_rows=scale_rows,
            planes=fmt.planes,
            is_half=packed["scales"].dtype == np.float16,
        )
        return "ternary", numbers, packed
    if isinstance(fmt, TrellisFormat):
        numbers = Trellis(
            scale_rows=scale_rows,
            step_bits=fmt.trellis.step_bits,
            state_bits=fmt.state_bits,
            code=list(CODES).index(fmt.code),
        )
        return "trellis", numbers, packed
    raise TypeError(f"no kernel of CUDA multiplies with {fmt}")


class Kernels:
    """A library of kernels, and the memory that they work in.

    ``memory`` has ``put(array)``, the address of a copy, ``get(address, shape, dtype)``, which
    waits for what runs, and ``free(address)``.
    """

    def __init__(self, library: str, memory) -> None:
        self.path, self.library, self.memory = library, ctypes.CDLL(library), memory

    def product(self, name, numbers, call) -> None:
        """Start ``onnxq_matmul_<name>_cuda``.

        Raises:
            ValueError: what the function says is wrong.
        """
        function = getattr(self.library, f"onnxq_matmul_{name}_cuda")
        function.restype = ctypes.c_char_p
        self._refused(function(ctypes.byref(call), ctypes.byref(numbers), None))

    def hadamard(self, x, factor):
        """Rows of ``x`` through ``onnxq_hadamard_cuda``, float32 or float16 as ``factor``."""
        function = self.library.onnxq_hadamard_cuda
        function.restype = ctypes.c_char_p
        order = len(factor)
        with self.held(x, factor, np.full_like(x, np.nan)) as (source, small, target):
            self._refused(
                function(
                    _POINTER(source),
                    _POINTER(target),
                    _LONG(len(x)),
                    _LONG(order),
                    _LONG(x.shape[1] // order),
                    _POINTER(small),
                    _INT(x.dtype == np.float16),
                    None,
                )
            )
            return self.memory.get(target, x.shape, x.dtype)

    @contextlib.contextmanager
    def held(self, *arrays):
        """Addresses of copies of the arrays, for as long as the block runs."""
        places = [self.memory.put(array) for array in arrays]
        try:
            yield places
        finally:
            for place in places:
                self.memory.free(place)

    @staticmethod
    def _refused(said: bytes | None) -> None:
        if said is not None:
            raise ValueError(said.decode())


class Weight:
    """A stored weight in the memory of the kernels; a context."""

    def __init__(self, kernels: Kernels, fmt: Format | str, weight) -> None:
        self.kernels = kernels
        self.format = parse_format(fmt) if isinstance(fmt, str) else fmt
        self.shape = weight.shape
        arrays = self.format.encode(weight)
        self.decoded = self.format.decode(arrays)
        stored = _stored(self.format, self.format.pack(arrays), weight.shape)
        self.name, self.numbers, self._arrays = stored
        self.bytes = sum(array.nbytes for array in self._arrays.values())

    def __enter__(self):
        self._places = {
            name: self.kernels.memory.put(array) for name, array in self._arrays.items()
        }
        for name, place in self._places.items():
            setattr(self.numbers, name, place)
        return self

    def __exit__(self, *_):
        for place in self._places.values():
            self.kernels.memory.free(place)

    @property
    def span(self) -> int:
        """Columns of a token that share a scale when it is rounded; 0 for all."""
        return SPAN_OF_LUT if self.name == "lut" else 0

    def call(self, a: int, y: int, tokens: int, *, is_half=False, activation_bits=32) -> Call:
        """The arguments for activations and results at these addresses."""
        rows, columns = self.shape
        return Call(a, y, tokens, rows, columns, is_half, activation_bits, self.span)

    def multiply(self, a, **options):
        """A · Wᵀ for ``a`` [tokens, columns], float32 or float16."""
        y = np.full((len(a), self.shape[0]), np.nan, a.dtype)
        with self.kernels.held(a, y) as (source, target):
            call = self.call(source, target, len(a), is_half=a.dtype == np.float16, **options)
            self.kernels.product(self.name, self.numbers, call)
            return self.kernels.memory.get(target, y.shape, y.dtype)


def rounded(a, span):
    """Activations as kernels with ``activation_bits`` 8 see them, exactly: float64.

    Args:
        a: ``[tokens, columns]``.
        span: columns that share a scale, 0 for all.
    """
    single = a.astype(np.float32)
    result = np.empty(single.shape, np.float64)
    for begin in range(0, a.shape[1], span or a.shape[1]):
        part = single[:, begin : begin + (span or a.shape[1])]
        most = np.maximum(np.abs(part).max(axis=1, keepdims=True), np.float32(2.0**-100))
        whole = np.rint(part * (np.float32(127) / most))
        result[:, begin : begin + part.shape[1]] = whole.astype(np.float64) * (
            most / np.float32(127)
        ).astype(np.float64)
    return result
