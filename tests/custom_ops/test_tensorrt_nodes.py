"""Plugins of TensorRT in Python: the table of operators, kernels of PTX, and what is registered."""

import ctypes
import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from onnxq.custom_ops.catalog import SPECS, spec_of
from onnxq.custom_ops.hadamard import HADAMARD, hadamard_reference
from onnxq.custom_ops.tensorrt import ptx, python
from onnxq.custom_ops.tensorrt.nodes import PLUGINS, blocks_of, launch_of, stem_of
from onnxq.errors import UnsupportedGraph, UsageError
from onnxq.formats import parse_format
from tests.custom_ops.fake_tensorrt_plugin import Module, TensorDesc
from tests.gpu import on_cpu
from tests.gpu.kernels import rounded
from tests.gpu.matmul_checks import FORMATS, bound, draw, shape_of

SOURCES = Path(__file__).parents[2] / "custom_ops"


def product(fmt):
    """Operator, attributes and stored arrays of a product with a drawn weight."""
    shape = shape_of(fmt)
    fmt = parse_format(fmt)
    spec = spec_of(fmt, shape)
    if isinstance(spec, str):
        pytest.skip(spec)
    stored = spec.stored(fmt.pack(fmt.encode(draw(*shape))))
    return spec, spec.attributes(fmt, shape), list(stored.values())


def launched(fmt, half=False):
    spec, attributes, arrays = product(fmt)
    halves = [half, *(array.dtype == np.float16 for array in arrays)]
    return launch_of(spec.name, attributes, [(), *(a.shape for a in arrays)], halves)


def test_the_table_has_every_operator_as_its_spec_says():
    assert set(PLUGINS) == {spec.name for spec in SPECS} | {HADAMARD}
    for spec in SPECS:
        node = PLUGINS[spec.name]
        assert node.inputs[1:] == spec.arrays and len(node.types) == len(node.inputs)


@pytest.mark.parametrize("fmt", FORMATS)
def test_attributes_and_types_are_those_of_nodes(fmt):
    spec, attributes, arrays = product(fmt)
    node = PLUGINS[spec.name]
    assert set(node.attributes) == set(attributes)
    may_be = {
        "u": "uint8",
        "i": "int8",
        "h": "float16",
        "s": "float32 float16",
        "t": "int8 float16",
    }
    for kind, array in zip(node.types[1:], arrays, strict=True):
        assert array.dtype.name in may_be[kind].split()


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_kernel_takes_as_many_integers_as_it_has_parameters(fmt):
    name = product(fmt)[0].name
    source = (SOURCES / stem_of(name) / f"{stem_of(name)}_ptx.cu").read_text()
    launch = launched(fmt)
    assert launch.kernel in source
    entry = source.split("NAME(const", 1)[1].split("void* y)")[0]
    integers = re.findall(r"int32_t (\w+)", entry.replace("\\", " "))
    assert len(integers) == 1 + len(launch.integers)
    assert integers[:4] == ["tokens", "rows", "columns", "activation_bits"]


def test_attributes_are_in_the_order_of_the_plugins_in_cpp():
    table = (SOURCES / "matmul" / "matmul_cuda_stored.h").read_text()
    for name, node in PLUGINS.items():
        if name == HADAMARD:
            continue
        text = table.split(f'kName = "{name}"')[1].split("kMultiply")[0]
        assert tuple(re.findall(r'"(\w+)"', text.split("kAttributes[]")[1])) == node.attributes
        assert re.search(r'kArrays\[\] = "(\w+)"', text)[1] == node.types[1:]


def test_what_a_kernel_is_given():
    launch = launched("int4_g24", half=True)
    assert launch.kernel == "onnxq_matmul_int_4_f16"
    # rows, columns, activation_bits, group, scales' rows and groups, zeros' rows, bits, signed,
    # whether scales are halves, whether there are ratios
    assert launch.integers == (67, 203, 8, 24, 67, 9, 1, 4, 1, 0, 0)
    assert launched("int5").kernel == "onnxq_matmul_int_0_f32"
    assert launched("trellis2_hyb").kernel == "onnxq_matmul_trellis_2_f32"
    assert launched("int4_g32_two").integers[-1] == 1


def test_blocks_for_each_number_of_tokens():
    launch = launched("int4_g24")  # 67 rows

    def blocks(tokens):
        return blocks_of(launch, tokens, lambda a, b: -(-a // b))

    assert blocks(1) == (17, 1)  # four rows each
    assert [blocks(tokens) for tokens in (2, 4, 5, 8)] == [(34, 1), (34, 1), (34, 2), (34, 2)]
    assert [blocks(tokens) for tokens in (9, 64, 65)] == [(2, 1), (2, 1), (2, 2)]


def test_a_hadamard_that_needs_more_shared_memory_is_refused():
    launch = launch_of(HADAMARD, {"size": 12288}, [(), (12, 12)], [True, True])
    assert (launch.kernel, launch.shared) == ("onnxq_hadamard_f16", 48 * 1024)
    assert launch.integers == (12, 1024)
    with pytest.raises(UnsupportedGraph, match=r"needs 65536 bytes .* plugins=onnxq"):
        launch_of(HADAMARD, {"size": 16384}, [(), (1, 1)], [False, False])


_HEAD = ".version 9.0\n.target sm_80\n\n"
_DECLARED = ".func deep\n(\n\t.param .b64 p\n)\n;\n"
_TABLE = ".const .align 4 .b8 table[4];\n"
_ONE = (
    ".visible .entry one(\n\t.param .u64 x\n)\n.maxntid 128, 1, 1\n{\n{ mov.b32 a;\n}\n\tret;\n}\n"
)
_OTHER = ".visible .entry other()\n{\n\tcall.uni shallow, (p);\n\tret;\n}\n"
_SHALLOW = ".func  (.param .b32 r) shallow(\n)\n{\n\tcall.uni deep, (p);\n}\n"
_DEEP = ".func deep(\n)\n{\n\tret;\n}\n"


def test_one_kernel_is_cut_out_of_many():
    text = _HEAD + _DECLARED + _TABLE + _ONE + _OTHER + _SHALLOW + _DEEP
    assert ptx.one_kernel(text, "one") == _HEAD + _TABLE + _ONE
    assert ptx.one_kernel(text, "other") == _HEAD + _DECLARED + _TABLE + _OTHER + _SHALLOW + _DEEP
    with pytest.raises(UsageError, match="no kernel 'third'"):
        ptx.one_kernel(text, "third")


@pytest.fixture
def module(monkeypatch):
    monkeypatch.setattr(python, "kernel_text", lambda operator, kernel: f"PTX of {kernel}")
    made = Module()
    assert python.register_plugins(made) == tuple(PLUGINS)
    assert python.register_plugins(made) == tuple(PLUGINS)  # once
    return made


def descs(arrays, first):
    names = {"uint8": "INT8", "int8": "INT8", "float16": "HALF", "float32": "FLOAT"}
    return [first, *(TensorDesc(array.shape, names[array.dtype.name]) for array in arrays)]


@pytest.mark.parametrize(
    "fmt", ("int4_g24", "lut4", "vq_d4n256", "e8p3_tensor", "ternary", "trellis2_hyb")
)
def test_plugins_of_products_in_python(fmt, module):
    spec, attributes, arrays = product(fmt)
    plugin = module.plugins[f"onnxq::{spec.name}"]
    values = {name: attributes[name] for name in plugin["attributes"]}
    inputs = descs(arrays, TensorDesc((-1, 3, attributes["columns"]), "HALF"))
    y = plugin["y"](*inputs, **values)
    assert y.dtype.name == "HALF" and [size.at(5) for size in y.shape_expr] == [
        5,
        3,
        values["rows"],
    ]

    (types,) = plugin["types"](*inputs, *values.values(), (y,))
    assert types.types.split(", ")[0] == types.types.split(", ")[-1] == "FP32|FP16"
    assert len(types.types.split(", ")) == len(inputs) + 1 and types.layouts == "LINEAR"

    name, text, how, integers = plugin["kernel"](*inputs, *values.values(), (y,), 0)
    launch = launched(fmt, half=True)
    assert (name, text) == (launch.kernel, f"PTX of {launch.kernel}")
    assert (how.block_x, how.shared_mem) == (128, 0)
    for n in (1, 2, 3, 50):
        assert [value.at(n) for value in integers] == [3 * n, *launch.integers]
        wanted = blocks_of(launch, 3 * n, lambda a, b: -(-a // b))
        assert (how.grid_x.at(n), how.grid_y.at(n)) == wanted


def test_the_plugin_of_hadamard_in_python(module):
    plugin = module.plugins["onnxq::Hadamard"]
    inputs = [TensorDesc((-1, 5, 48), "FLOAT"), TensorDesc((3, 3), "FLOAT")]
    assert [size.at(2) for size in plugin["y"](*inputs, size=24).shape_expr] == [2, 5, 48]
    name, _, how, integers = plugin["kernel"](*inputs, 24, (), 0)
    assert name == "onnxq_hadamard_f32" and [value.at(7) for value in integers] == [3, 8]
    assert how.grid_x.at(7) == 7 * 5 * 2 and how.grid_y == 1
    assert (how.block_x, how.shared_mem) == (256, 96)


def test_without_ptx_the_sentence_says_how_to_get_it(monkeypatch, tmp_path):
    ptx.kernel_text.cache_clear()
    monkeypatch.setattr(ptx.importlib.resources, "files", lambda _: tmp_path)
    with pytest.raises(UsageError, match=r"has no matmul_int\.ptx.*where nvcc is"):
        ptx.kernel_text("MatMulInt", "onnxq_matmul_int_4_f16")


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """``started(launch, inputs, tokens, rows)`` gives Y, by a kernel compiled for the CPU."""
    if on_cpu.compiler() is None or platform.system() != "Linux":
        pytest.skip("kernels run on the CPU where Linux has a C++ compiler")
    folder = tmp_path_factory.mktemp("ptx_on_cpu")
    kernels = on_cpu.build(folder)
    library, memory = ctypes.CDLL(str(on_cpu.build_ptx(folder, kernels))), on_cpu.Memory(kernels)

    def start(launch, inputs, tokens, rows):
        y = np.full((tokens, rows), np.nan, inputs[0].dtype)
        places = [memory.put(array) for array in (*inputs, y)]
        counts = [tokens, *launch.integers] if launch.rows else launch.integers
        words = [*places[:-1], *counts, places[-1]]
        blocks = blocks_of(launch, tokens, lambda a, b: -(-a // b))
        library.run_kernel(
            ctypes.cast(getattr(library, launch.kernel), ctypes.c_void_p),
            (ctypes.c_int64 * 20)(*words, *[0] * (20 - len(words))),
            *blocks,
            launch.threads,
        )
        found = memory.get(places[-1], y.shape, y.dtype)
        for place in places:
            memory.free(place)
        return found

    return start


@pytest.mark.slow
@pytest.mark.parametrize(("index", "fmt"), tuple(enumerate(FORMATS)))
def test_kernels_of_ptx_multiply(index, fmt, started):
    spec, attributes, arrays = product(fmt)
    dtype = (np.float32, np.float16)[index % 2]
    launch = launched(fmt, half=dtype == np.float16)
    fmt = parse_format(fmt)
    decoded = fmt.decode(fmt.encode(draw(*shape_of(str(fmt))))).astype(np.float64)
    for tokens in (1, 3, 8, 70):
        a = draw(tokens, attributes["columns"]).astype(dtype)
        span = 128 if spec.name == "MatMulLut" else 0
        rounds = attributes["activation_bits"] == 8
        seen = rounded(a, span) if rounds else a.astype(np.float64)
        y = started(launch, [a, *arrays], tokens, attributes["rows"])
        assert (np.abs(y - seen @ decoded.T) <= bound(seen, decoded, dtype, tokens)).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", (np.float32, np.float16))
def test_the_kernel_of_ptx_rotates(dtype, started):
    factor = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0].astype(dtype)
    x = draw(5, 24).astype(dtype)
    launch = launch_of(HADAMARD, {"size": 24}, [(), (3, 3)], [dtype == np.float16] * 2)
    wanted = hadamard_reference(x.astype(np.float64), factor.astype(np.float64), 24)
    unit = 2.0**-24 if dtype == np.float32 else 2.0**-11
    found = started(launch, [x, factor], 5, 24)
    np.testing.assert_allclose(found, wanted, rtol=unit, atol=24 * 2.0**-24 * 8)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="PTX is written by nvcc")
@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_every_kernel_assembles_for_every_generation(name, tmp_path):
    source = SOURCES / stem_of(name) / f"{stem_of(name)}_ptx.cu"
    whole = tmp_path / "all.ptx"
    nvcc = ["nvcc", "-std=c++17", "-O3", "-ptx", "-arch=compute_80", str(source), "-o", str(whole)]
    subprocess.run(nvcc, check=True)
    text = whole.read_text()
    kernels = re.findall(r"ONNXQ_ENTRY\((onnxq_\w+)", source.read_text())
    assert len(kernels) >= 2
    for kernel in kernels:
        one = tmp_path / f"{kernel}.ptx"
        one.write_text(ptx.one_kernel(text, kernel))
        for generation in ("sm_80", "sm_90a", "sm_120"):
            subprocess.run(
                ["ptxas", "-O1", f"-arch={generation}", str(one), "-o", str(tmp_path / "out")],
                check=True,
            )
