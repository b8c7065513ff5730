"""The plugins for TensorRT, compiled against its headers and run without it: kernels on the CPU.

`custom_ops/tensorrt/tests/plugin_on_cpu.cpp` takes a plugin through the life that TensorRT gives
it.
"""

import ctypes
import subprocess
import sys

import numpy as np
import pytest

from onnxq.custom_ops.catalog import SPECS, spec_of
from onnxq.custom_ops.hadamard import hadamard_reference
from onnxq.formats import parse_format
from tests.gpu import on_cpu
from tests.gpu.kernels import rounded
from tests.gpu.matmul_checks import FORMATS, bound, draw, shape_of

pytestmark = [
    pytest.mark.trt,
    pytest.mark.skipif(
        on_cpu.tensorrt_headers() is None or on_cpu.compiler() is None,
        reason="ONNXQ_TENSORRT_INCLUDE names no folder with NvInferRuntime.h: make test-tensorrt",
    ),
]

_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int8): 2}
CREATED, TYPES, SHAPES, CONFIGURED = 1, 2, 3, 6


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dims", ctypes.c_int64 * 8),
        ("rank", ctypes.c_int32),
        ("type", ctypes.c_int32),
    )

    @classmethod
    def of(cls, array):
        return cls(
            array.ctypes.data, (ctypes.c_int64 * 8)(*array.shape), array.ndim, _TYPES[array.dtype]
        )


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins_on_cpu")
    return on_cpu.build_plugins(folder, on_cpu.build(folder))


@pytest.fixture(scope="module")
def run(library):
    """``run(name, attributes, inputs, rows)`` gives (stage that failed, what was said, Y)."""
    function = ctypes.CDLL(str(library)).plugin_run

    def call(name, attributes, inputs, rows):
        inputs = [np.ascontiguousarray(array) for array in inputs]
        y = np.full((*inputs[0].shape[:-1], rows), np.nan, inputs[0].dtype)
        result, sentence = _Tensor.of(y), ctypes.c_char_p()
        stage = function(
            name.encode(),
            len(attributes),
            (ctypes.c_char_p * len(attributes))(*(key.encode() for key in attributes)),
            (ctypes.c_int32 * len(attributes))(*attributes.values()),
            len(inputs),
            (_Tensor * len(inputs))(*map(_Tensor.of, inputs)),
            ctypes.byref(result),
            ctypes.byref(sentence),
        )
        if stage == 0:
            assert result.type == _TYPES[y.dtype]
            assert result.dims[: result.rank] == [-1] * (y.ndim - 1) + [rows]
        return stage, (sentence.value or b"").decode(), y

    return call


def node_of(fmt, dtype=np.float32, tokens=(2, 3)):
    """Name, attributes, inputs and what Y must be within, of a product with a drawn weight."""
    shape = shape_of(fmt)
    fmt = parse_format(fmt)
    spec = spec_of(fmt, shape)
    if isinstance(spec, str):
        pytest.skip(spec)
    arrays = fmt.encode(draw(*shape))
    stored = [
        array.view(np.int8) if array.dtype == np.uint8 else array
        for array in spec.stored(fmt.pack(arrays)).values()
    ]
    attributes = spec.attributes(fmt, shape)
    a = draw(*tokens, shape[1]).astype(dtype)
    flat = a.reshape(-1, shape[1])
    span = 128 if spec.name == "MatMulLut" else 0
    seen = flat.astype(np.float64) if attributes["activation_bits"] == 32 else rounded(flat, span)
    decoded = fmt.decode(arrays).astype(np.float64)
    wanted = (seen @ decoded.T).reshape(*tokens, shape[0])
    off = bound(seen, decoded, dtype, len(flat)).reshape(wanted.shape)
    return spec.name, attributes, [a, *stored], wanted, off


@pytest.mark.parametrize(("index", "fmt"), tuple(enumerate(FORMATS)))
def test_plugins_multiply(index, fmt, run):
    dtype = (np.float32, np.float16)[index % 2]
    name, attributes, inputs, wanted, off = node_of(fmt, dtype)
    stage, said, y = run(name, attributes, inputs, wanted.shape[-1])
    assert (stage, said) == (0, "")
    assert (np.abs(y - wanted) <= off).all()


@pytest.mark.parametrize("dtype", (np.float32, np.float16))
def test_hadamard(dtype, run):
    factor = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0].astype(dtype)
    x = draw(2, 5, 48).astype(dtype)
    stage, said, y = run("Hadamard", {"size": 24}, [x, factor], 48)
    assert (stage, said) == (0, "")
    wide = x.reshape(-1, 24).astype(np.float64)
    wanted = hadamard_reference(wide, factor.astype(np.float64), 24).reshape(x.shape)
    unit = 2.0**-24 if dtype == np.float32 else 2.0**-11
    np.testing.assert_allclose(y, wanted, rtol=unit, atol=24 * 2.0**-24 * 8)


def test_every_operator_has_a_plugin(run):
    names = {spec.name for spec in SPECS} | {"Hadamard"}
    for name in names:
        assert run(name, {}, [draw(2, 8)], 4)[0] == CREATED
    assert run("MatMulNothing", {}, [draw(2, 8)], 4)[0] == -1


def test_what_is_wrong_is_a_sentence(run):
    name, attributes, inputs, *_ = node_of("int4_g24")
    without = {key: value for key, value in attributes.items() if key != "bits"}
    stage, said, _ = run(name, without, inputs, 67)
    assert stage == CREATED
    assert said == "onnxq.MatMulInt: node node has no integer attribute bits"

    stage, said, _ = run(name, attributes, inputs[:-1], 67)
    assert (stage, said) == (TYPES, "onnxq.MatMulInt: there are 4 inputs, and must be 5")

    wrong = [*inputs[:2], inputs[2].astype(np.int8), *inputs[3:]]
    stage, said, _ = run(name, attributes, wrong, 67)
    assert (stage, said) == (TYPES, "onnxq.MatMulInt: input 2 must be float32 or float16")

    stage, said, _ = run(name, attributes, [inputs[0][..., :-1], *inputs[1:]], 67)
    assert stage == CONFIGURED
    assert said == ("onnxq.MatMulInt: A has shape [2, 3, 202]; its last axis must be columns = 203")

    stage, said, _ = run(name, attributes, [inputs[0], inputs[1][:-1], *inputs[2:]], 67)
    assert stage == CONFIGURED
    assert said == "onnxq.MatMulInt: codes has shape [66, 102], and must have [67, 102]"


_IN_TENSORRT_RTX = """
import sys
import numpy, onnx, tensorrt_rtx as trt
log = trt.Logger(trt.Logger.INFO)
trt.get_plugin_registry().load_library(sys.argv[1])
network = trt.Builder(log).create_network(0)
node = onnx.helper.make_node("MatMulTernary", ["a", "w", "s"], ["y"], domain="onnxq", rows=6,
    columns=20, planes=1, activation_bits=8, **({"group": 20} if sys.argv[2] else {}))
half = onnx.TensorProto.FLOAT16
graph = onnx.helper.make_graph([node], "g",
    [onnx.helper.make_tensor_value_info("a", half, ["n", 20])],
    [onnx.helper.make_tensor_value_info("y", half, ["n", 6])],
    [onnx.numpy_helper.from_array(numpy.ones((6, 4), numpy.int8), "w"),
     onnx.numpy_helper.from_array(numpy.ones((6, 1), numpy.float16), "s")])
opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("onnxq", 1)]
model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
trt.OnnxParser(network, log).parse(model.SerializeToString())
"""


@pytest.mark.parametrize("is_whole", (True, False))
def test_tensorrt_rtx_finds_the_plugin_of_a_node(is_whole, library):
    """Its registry loads the library and its parser creates the plugin, by the domain of the node.

    There it ends: networks of TensorRT-RTX take no plugins, and its parser stops the process.
    """
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("onnx")
    command = [sys.executable, "-c", _IN_TENSORRT_RTX, str(library), "1" * is_whole]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    said = done.stdout + done.stderr
    assert "pluginNamespace: onnxq" in said
    assert ("Successfully created plugin: MatMulTernary" in said) is is_whole
    if not is_whole:
        assert "has no integer attribute group" in said
