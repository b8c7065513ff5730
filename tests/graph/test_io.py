"""What is loaded is what was saved: every tensor, name and property, in every container."""

import gc
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import ModelSaveError, UnsupportedGraph
from onnxq.graph import (
    Stage,
    add_weight,
    load,
    mark_stage,
    read_weight,
    replace_weight,
    save,
    stage_of,
    walk_weights,
    weight_tensor,
)
from onnxq.graph.data_file import DataFile, FileTensor
from onnxq.graph.versions import MAX_IR_VERSION

DTYPES = [
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT4E2M1,
    ir.DataType.INT64,
    ir.DataType.INT8,
    ir.DataType.UINT8,
    ir.DataType.INT4,
    ir.DataType.UINT4,
    ir.DataType.INT2,
    ir.DataType.UINT2,
    ir.DataType.BOOL,
    ir.DataType.COMPLEX64,
]
EVERYTHING = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
g (bool c, float[N, 4] x) => (float[N, 4] y) {
    w = Constant <value = float[4] {1, 2, 3, 4}> ()
    a = Mul (x, w)
    [call] b = local.twice (a)
    [choose] y = If (c) <
        then_branch = t () => (float[N, 4] u) <float[4] tw = {5, 6, 7, 8}> { u = Add (b, tw) },
        else_branch = e () => (float[N, 4] v) {
            ew = Constant <value_float = 9.0> () v = Mul (b, ew) }>
}
<domain: "local", opset_import: ["" : 21]> twice (p) => (q) {
    two = Constant <value = float {2}> ()
    q = Mul (p, two)
}"""


def empty_model() -> ir.Model:
    return ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[N] x) => (float[N] y) '
        "{ y = Identity (x) }"
    )


def random_array(dtype: ir.DataType, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any stored value of the type, special values included."""
    rng = np.random.default_rng(seed)
    kind = dtype.numpy()
    if dtype == ir.DataType.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.bitwidth < 8:
        return ir.PackedTensor(
            rng.integers(0, 256, -(-int(np.prod(shape)) * dtype.bitwidth // 8), np.uint8),
            dtype,
            shape=shape,
        ).numpy()
    raw = rng.integers(0, 256, (*shape, kind.itemsize), np.uint8)
    return raw.view(kind).reshape(shape)


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and first.tobytes() == second.tobytes()
    )


@settings(max_examples=60, deadline=None)
@given(
    specs=st.lists(
        st.tuples(
            st.sampled_from(DTYPES),
            st.lists(st.integers(0, 40), max_size=3).map(tuple),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    ),
    seed=st.integers(0, 2**32 - 1),
    external=st.booleans(),
)
def test_load_save_load_keeps_every_tensor(
    tmp_path_factory: pytest.TempPathFactory,
    specs: list[tuple[ir.DataType, tuple[int, ...], bool]],
    seed: int,
    external: bool,
) -> None:
    folder = tmp_path_factory.mktemp("io")
    model, arrays = empty_model(), {}
    for index, (dtype, shape, lazy) in enumerate(specs):
        array = random_array(dtype, shape, seed + index)
        value = add_weight(
            model.graph,
            "w",
            shape=shape,
            dtype=dtype,
            compute=(lambda array=array: array) if lazy else array,
        )
        arrays[value.name] = array
    once = load(save(model, folder / "a.onnx", external=external))
    again = load(save(once, folder / "b.onnx", external=not external))
    back = load(save(again, folder / "a.onnx", external=external))
    for loaded in (once, again, back):
        assert len(loaded.graph.initializers) == len(arrays)
        for name, array in arrays.items():
            value = loaded.graph.initializers[name]
            assert same(read_weight(value), array)
            assert same(np.asarray(weight_tensor(value).numpy()), array)
            assert tuple(value.shape.numpy()) == array.shape


def test_everything_in_a_model_survives(tmp_path: Path) -> None:
    model = load(onnx.parser.parse_model(EVERYTHING))
    model.metadata_props["who"] = "me"
    model.graph.metadata_props["graph"] = "g"
    next(iter(model.graph)).metadata_props["node"] = "n"
    model.producer_name, model.model_version, model.doc_string = "test", 7, "a model"
    text = ir.to_proto(model).SerializeToString(deterministic=True)
    again = load(save(model, tmp_path))
    assert ir.to_proto(again).SerializeToString(deterministic=True) == text
    assert again.metadata_props == {"who": "me"}
    found = {(path, value.name): read_weight(value) for path, value in walk_weights(again)}
    assert {path for path, _ in found} == {
        "",
        "choose/then_branch",
        "choose/else_branch",
        "local::twice",
    }
    assert found["choose/then_branch", "tw"].tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("external", [False, True])
def test_the_bytes_depend_on_the_model_only(tmp_path: Path, external: bool) -> None:
    model = empty_model()
    for index in range(5):
        array = np.full((40, 40), index, np.float32)
        add_weight(model.graph, "w", shape=(40, 40), dtype=ir.DataType.FLOAT, compute=array)
    contents = []
    for name in ("a", "b", "a", "a"):
        save(model, tmp_path / name, external=external)
        folder = (tmp_path / name).iterdir()
        contents.append({path.name: path.read_bytes() for path in folder})
    assert contents[0] == contents[1] == contents[2] == contents[3]
    assert set(contents[0]) == ({"model.onnx", "model.onnx.data"} if external else {"model.onnx"})


def test_every_source_gives_the_same_model(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(EVERYTHING)
    path = save(load(proto), tmp_path / "deep" / "er" / "net.onnx")
    (tmp_path / "t.onnxtxt").write_text(EVERYTHING, encoding="utf-8")
    onnx.save(proto, tmp_path / "t.textproto")
    onnx.save(proto, tmp_path / "t.json")
    sources = [
        proto,
        proto.SerializeToString(),
        path,
        str(path),
        path.parent,
        ir.from_proto(proto),
        *(tmp_path / f"t.{suffix}" for suffix in ("onnxtxt", "textproto", "json")),
    ]
    expected = ir.to_proto(load(path)).SerializeToString(deterministic=True)
    for source in sources:
        found = ir.to_proto(load(source)).SerializeToString(deterministic=True)
        assert found == expected, source


def test_the_layout_of_external_data(tmp_path: Path) -> None:
    """Large tensors on pages, others on cache lines, small ones inline, shared ones once."""
    model = empty_model()
    sizes = {"small": 100, "medium": 1000, "large": 1 << 19, "more": 1 << 19}
    for name, size in sizes.items():
        array = np.arange(size, dtype=np.float32)
        add_weight(model.graph, name, shape=(size,), dtype=ir.DataType.FLOAT, compute=array)
    tied = model.graph.initializers["large"].const_value
    assert tied is not None
    add_weight(model.graph, "tied", shape=(1 << 19,), dtype=ir.DataType.FLOAT, compute=tied)
    for _ in range(2):
        model = load(save(model, tmp_path, external=True))
        tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
        assert not isinstance(tensors["small"], FileTensor)
        places = {name: t.offset for name, t in tensors.items() if isinstance(t, FileTensor)}
        assert places["tied"] == places["large"] != places["more"]
        assert places["medium"] % 64 == places["large"] % 4096 == places["more"] % 4096 == 0
        assert (tmp_path / "model.onnx.data").stat().st_size < 3 * (1 << 21)


def test_small_models_are_one_file_and_large_ones_two(tmp_path: Path) -> None:
    model = empty_model()
    add_weight(
        model.graph,
        "w",
        shape=(17 << 20,),
        dtype=ir.DataType.FLOAT,
        compute=lambda: np.ones(17 << 20, np.float32),
    )
    save(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size == 68 << 20
    replace_weight(
        model.graph.initializers["w"],
        shape=(17 << 20,),
        dtype=ir.DataType.INT8,
        compute=lambda: np.ones(17 << 20, np.int8),
    )
    save(model, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx.data").exists()


def test_more_than_protobuf_holds_is_refused_when_asked_inline(tmp_path: Path) -> None:
    model = empty_model()
    add_weight(
        model.graph,
        "w",
        shape=(1 << 30,),
        dtype=ir.DataType.FLOAT,
        compute=lambda: pytest.fail("the data were computed for nothing"),
    )
    with pytest.raises(ModelSaveError, match=r"cannot exceed 2 GiB\. Save with external=True"):
        save(model, tmp_path, external=False)


def test_weights_in_constants_of_functions_go_to_the_data_file(tmp_path: Path) -> None:
    model = load(onnx.parser.parse_model(EVERYTHING))
    for path, value in walk_weights(model):
        if path == "local::twice":
            replace_weight(
                value,
                shape=(600, 4),
                dtype=ir.DataType.FLOAT,
                compute=lambda: np.full((600, 4), 3, np.float32),
            )
    again = load(save(model, tmp_path, external=True))
    value = next(value for path, value in walk_weights(again) if path == "local::twice")
    assert isinstance(weight_tensor(value), FileTensor)
    assert read_weight(value).sum() == 7200


def test_progress_tells_each_tensor_and_ends_at_the_total(tmp_path: Path) -> None:
    model = empty_model()
    for name in ("a", "b"):
        add_weight(
            model.graph,
            name,
            shape=(1000,),
            dtype=ir.DataType.FLOAT,
            compute=np.zeros(1000, np.float32),
        )
    told: list[tuple[str, int, int]] = []
    save(model, tmp_path, external=True, progress=lambda *row: told.append(row))
    total = 4032 + 4000
    assert told == [("a", 0, total), ("b", 4032, total), ("", total, total)]


def test_saving_changes_nothing_in_memory(tmp_path: Path) -> None:
    model = load(onnx.parser.parse_model(EVERYTHING))
    mark_stage(model, Stage.PREPARED)
    tensors = {id(weight_tensor(value)) for _, value in walk_weights(model)}
    text = ir.to_proto(model).SerializeToString(deterministic=True)
    save(model, tmp_path, external=True)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == text
    assert tensors & {id(weight_tensor(value)) for _, value in walk_weights(model)}
    assert stage_of(load(model)) == Stage.PREPARED


def test_what_is_written_suits_the_runtime(tmp_path: Path) -> None:
    """IR version as low as it may be and as high as it must; every used domain imported."""
    model = empty_model()
    model.ir_version = 3
    node = ir.node("Gelu", [model.graph.inputs[0]], domain="com.microsoft", name="gelu")
    node.outputs[0].name = "h"
    model.graph.insert_before(model.graph.node(0), node)
    saved = load(save(model, tmp_path))
    assert saved.ir_version == 10 and saved.opset_imports["com.microsoft"] == 1
    weight = np.zeros((4, 4), np.int8).astype(ml_dtypes.int2)
    add_weight(model.graph, "w", shape=(4, 4), dtype=ir.DataType.INT2, compute=weight)
    assert load(save(model, tmp_path)).ir_version == MAX_IR_VERSION
    model.opset_imports[""] = 99
    with pytest.raises(UnsupportedGraph, match="opset 99"):
        save(model, tmp_path)
    assert load(tmp_path).opset_imports[""] == 21


def test_inputs_that_old_models_list_for_each_weight_are_dropped() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 9]> g (float[N] x, float[1] w) => (float[N] y) '
        "{ y = Mul (x, w) }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.float32), "w"))
    assert [value.name for value in load(proto).graph.inputs] == ["x"]
    proto.ir_version = 6
    assert [value.name for value in load(proto).graph.inputs] == ["x", "w"]


def test_a_model_of_very_many_data_files(tmp_path: Path) -> None:
    """Exporters that write one file per tensor must not use up the descriptors."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) '
        "{ y = Identity (x) }"
    )
    for index in range(100):
        (tmp_path / f"{index}.bin").write_bytes(np.full(4, index, np.float32).tobytes())
        tensor = proto.graph.initializer.add(name=f"w{index}", data_type=1, dims=[4])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{index}.bin")
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    model = load(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    assert read_weight(model.graph.initializers["w42"])[0] == 42
    (tmp_path / "42.bin").write_bytes(bytes(16))
    (tmp_path / "42.bin").touch()
    with pytest.raises(Exception, match="has been replaced since the model was loaded"):
        read_weight(model.graph.initializers["w42"])
    (tmp_path / "42.bin").unlink()
    with pytest.raises(Exception, match="cannot be opened now"):
        read_weight(model.graph.initializers["w42"])


def test_a_file_tensor_without_the_kernels_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.arange(100_000, dtype=np.float32)
    (tmp_path / "in").write_bytes(b"123" + array.tobytes())
    tensor = FileTensor(
        DataFile(tmp_path / "in"), 3, ir.DataType.FLOAT, ir.Shape([100_000]), name="w"
    )
    for help_from_kernel in (True, False):
        if not help_from_kernel:
            monkeypatch.delattr(os, "copy_file_range")
        with (tmp_path / "out").open("wb") as file:
            file.write(b"xy")
            tensor.tofile(file)
            file.write(b"z")
        assert (tmp_path / "out").read_bytes() == b"xy" + array.tobytes() + b"z"
    assert tensor.tobytes() == array.tobytes()
    view = tensor.numpy()
    assert not view.flags.writeable and tensor.read().flags.writeable
    np.testing.assert_array_equal(view, array)
    os.truncate(tmp_path / "in", 1000)
    with pytest.raises(Exception, match="ends inside tensor 'w'"):
        tensor.read()
