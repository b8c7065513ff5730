"""Every bad input is refused with a sentence: what it is, where, what to do."""

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import ModelLoadError, UnsupportedGraph
from onnxq.graph import check_finite, load, read_weight, save, walk_nodes, walk_weights
from onnxq.graph.versions import MAX_IR_VERSION, MAX_OPSET

RELU = '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) { y = Relu(x) }'


def proto_of(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def matmul_with_external(folder: Path, **entries: object) -> Path:
    """A model whose 4x4 weight is in ``w.bin`` (64 bytes), with the given location entries."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": 0, "length": 64, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir(exist_ok=True)
    (folder / "w.bin").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image"),
        (b"PK\x03\x04" + bytes(100), "a zip archive"),
        (b"GGUF\x03\x00\x00\x00", "onnxq.export.from_gguf"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"Call me Ishmael. Some years ago - never mind how long precisely", "not an ONNX model"),
        (bytes(64), "not an ONNX model"),
        (b"\x1c\x00\x00\x00ORTM" + bytes(40), "ORT format"),
    ],
)
def test_a_file_that_is_not_onnx_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    model = proto_of(RELU)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(300, np.float32), "w"))
    whole = model.SerializeToString()
    load(whole)
    for end in range(1, len(whole)):
        with pytest.raises(ModelLoadError):
            load(whole[:end])


def test_missing_paths_and_ambiguous_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelLoadError, match=r"holds no \.onnx file"):
        load(tmp_path)
    (tmp_path / "a.onnx").write_bytes(proto_of(RELU).SerializeToString())
    assert load(tmp_path).graph.outputs[0].name == "y"
    (tmp_path / "b.onnx").write_bytes(b"")
    with pytest.raises(ModelLoadError, match=r"2 \.onnx files \(a\.onnx, b\.onnx\)"):
        load(tmp_path)


def test_a_dangling_link_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").symlink_to("gone.onnx")
    with pytest.raises(ModelLoadError, match="symbolic link to nothing"):
        load(tmp_path / "model.onnx")


def test_an_object_of_another_type() -> None:
    with pytest.raises(ModelLoadError, match="cannot be loaded from int"):
        load(3)  # type: ignore[arg-type]


def test_opset_too_new_is_lowered_only_when_nothing_needs_it() -> None:
    plain = proto_of(RELU)
    plain.opset_import[0].version = MAX_OPSET + 1
    assert load(plain).opset_imports[""] == MAX_OPSET
    with pytest.raises(ModelLoadError, match=f"opset {MAX_OPSET + 1}.*convert=True"):
        load(plain, convert=False)

    new = proto_of(
        '<ir_version: 10, opset_import: ["" : 28]> g (float[N] x) => (float[N] y) { y = Celu(x) }'
    )
    with pytest.raises(ModelLoadError, match=rf"node_Celu_0 \(Celu\).*opset {MAX_OPSET} or lower"):
        load(new)

    future = proto_of(RELU)
    future.opset_import[0].version = 99
    with pytest.raises(ModelLoadError, match="opset 99 is not known"):
        load(future)


def test_ir_version_too_new_is_lowered_unless_an_element_type_needs_it() -> None:
    plain = proto_of(RELU)
    plain.ir_version = 99
    assert load(plain).ir_version == MAX_IR_VERSION
    plain.graph.initializer.append(
        TensorProto(name="w", data_type=27, dims=[4], raw_data=b"\x00" * 3)
    )
    with pytest.raises(ModelLoadError, match="6-bit floats"):
        load(plain)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"raw_data": b"\0" * 15}, r"tensor 'w' of type FLOAT\[2, 2\] has 15 bytes and not 16"),
        ({"raw_data": b""}, "has 0 bytes and not 16"),
        ({"data_type": 0}, "has the unknown element type 0"),
        ({"data_type": 1000}, "has the unknown element type 1000"),
        ({"dims": [2, -2]}, r"has the shape \[2, -2\]"),
        ({"dims": [3, 3]}, "has 16 bytes and not 36"),
    ],
)
def test_a_damaged_tensor_is_named(change: dict[str, object], says: str) -> None:
    for in_constant in (False, True):
        tensor = numpy_helper.from_array(np.zeros((2, 2), np.float32), "w")
        for field, content in change.items():
            tensor.ClearField(field)
            if isinstance(content, list):
                getattr(tensor, field).extend(content)
            else:
                setattr(tensor, field, content)
        model = proto_of(RELU)
        if in_constant:
            model.graph.node.append(helper.make_node("Constant", [], ["w"]))
            model.graph.node[1].attribute.add(name="value", type=4).t.CopyFrom(tensor)
        else:
            model.graph.initializer.append(tensor)
        with pytest.raises(ModelLoadError, match=says):
            load(model)


def test_missing_external_data(tmp_path: Path) -> None:
    path = matmul_with_external(tmp_path)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelLoadError, match=r"tensor 'w': the file .*w\.bin does not exist"):
        load(path)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"offset": 4}, r"ends at byte 68 of .*w\.bin, which has only 64: the file is truncated"),
        ({"offset": 1 << 40}, "truncated"),
        ({"length": 60}, "do not belong together"),
        ({"location": "../w.bin"}, "leads out of the model's folder"),
        ({"location": "a/../../w.bin"}, "leads out of the model's folder"),
        ({"location": "/etc/passwd"}, "leads out of the model's folder"),
        ({"location": ""}, "leads out of the model's folder"),
        ({"location": "."}, "is not a file"),
    ],
)
def test_external_data_that_cannot_be_right(
    tmp_path: Path, entries: dict[str, object], says: str
) -> None:
    path = matmul_with_external(tmp_path / "model", **entries)
    (tmp_path / "w.bin").write_bytes(bytes(64))
    with pytest.raises(ModelLoadError, match=says) as caught:
        load(path)
    assert "tensor 'w'" in str(caught.value)


def test_truncated_external_data(tmp_path: Path) -> None:
    path = matmul_with_external(tmp_path)
    os.truncate(tmp_path / "w.bin", 63)
    with pytest.raises(ModelLoadError, match="has only 63: the file is truncated"):
        load(path)


def test_a_link_out_of_the_folder_is_explained_and_one_inside_is_followed(tmp_path: Path) -> None:
    path = matmul_with_external(tmp_path / "snapshot")
    data = tmp_path / "snapshot" / "w.bin"
    shutil.move(data, tmp_path / "blob")
    data.symlink_to(tmp_path / "blob")
    with pytest.raises(ModelLoadError, match=r"Hugging Face cache.*cp -rL"):
        load(path)
    data.unlink()
    shutil.move(tmp_path / "blob", tmp_path / "snapshot" / "blob")
    data.symlink_to("blob")
    assert read_weight(load(path).graph.initializers["w"])[3, 3] == 15


def test_a_hard_linked_data_file_is_taken(tmp_path: Path) -> None:
    """onnx_ir refuses these; package managers that share files between environments make them."""
    path = matmul_with_external(tmp_path)
    os.link(tmp_path / "w.bin", tmp_path / "other-name")
    assert read_weight(load(path).graph.initializers["w"])[0, 1] == 1


def test_bytes_cannot_have_external_data(tmp_path: Path) -> None:
    path = matmul_with_external(tmp_path)
    with pytest.raises(ModelLoadError, match=r"Pass the path of the \.onnx file"):
        load(path.read_bytes())


def test_a_data_file_replaced_after_loading_is_still_the_old_one(tmp_path: Path) -> None:
    model = load(matmul_with_external(tmp_path))
    (tmp_path / "new").write_bytes(bytes(64))
    (tmp_path / "new").replace(tmp_path / "w.bin")
    assert read_weight(model.graph.initializers["w"])[3, 3] == 15


def test_a_cycle_lists_its_nodes() -> None:
    model = proto_of(RELU)
    del model.graph.node[:]
    model.graph.node.extend(
        [
            helper.make_node("Add", ["x", "c"], ["a"], name="first"),
            helper.make_node("Relu", ["a"], ["b"], name="second"),
            helper.make_node("Neg", ["b"], ["c"], name="third"),
            helper.make_node("Identity", ["b"], ["y"], name="out"),
        ]
    )
    with pytest.raises(ModelLoadError, match="a cycle: 'second' -> 'third' -> 'first' -> 'second'"):
        load(model)


def test_nodes_out_of_order_are_sorted() -> None:
    model = proto_of(RELU)
    del model.graph.node[:]
    model.graph.node.extend(
        [
            helper.make_node("Neg", ["a"], ["y"], name="last"),
            helper.make_node("Relu", ["x"], ["a"], name="first"),
        ]
    )
    assert [node.name for _, node in walk_nodes(load(model))] == ["first", "last"]


def test_a_dangling_input_is_named() -> None:
    model = proto_of(RELU)
    model.graph.node[0].name = "act"
    model.graph.node[0].input[0] = "ghost"
    with pytest.raises(ModelLoadError, match=r"node 'act' \(Relu\) reads 'ghost', which nothing"):
        load(model)


def test_a_dangling_input_in_a_body_is_named() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (bool c, float[N] x) => (float[N] y) {
        [choose] y = If (c) <
            then_branch = t () => (float[N] u) { [inner] u = Add (x, ghost) },
            else_branch = e () => (float[N] v) { v = Neg (x) }>
    }"""
    with pytest.raises(ModelLoadError, match=r"'inner' \(Add\) in choose/then_branch .*'ghost'"):
        load(proto_of(text))


def test_an_output_nobody_produces() -> None:
    model = proto_of(RELU)
    model.graph.output[0].name = "other"
    with pytest.raises(ModelLoadError, match="output 'other' is produced by no node"):
        load(model)


def test_names_given_twice() -> None:
    twice = proto_of(RELU)
    twice.graph.node.append(helper.make_node("Neg", ["x"], ["y"], name="again"))
    with pytest.raises(ModelLoadError, match=r"'y'.* is given twice.*'again' \(Neg\)"):
        load(twice)
    weights = proto_of(RELU)
    for _ in range(2):
        weights.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    with pytest.raises(ModelLoadError, match="initializer of graph 'g' is given twice: 'w'"):
        load(weights)
    over_input = proto_of(RELU)
    over_input.graph.node[0].output[0] = "x"
    with pytest.raises(ModelLoadError, match=r"'x'.* is given twice, by a graph input"):
        load(over_input)


def test_classical_map_outputs_are_refused_with_a_sentence() -> None:
    model = proto_of(RELU)
    output = model.graph.output[0].type
    output.map_type.key_type = TensorProto.INT64
    output.map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(ModelLoadError, match="the graph cannot be built: Map types"):
        load(model)


def test_broken_text_models(tmp_path: Path) -> None:
    path = tmp_path / "model.onnxtxt"
    path.write_text("<ir_version: 8> g (float x => y", encoding="utf-8")
    with pytest.raises(ModelLoadError, match="not an ONNX model in text form"):
        load(path)
    path.write_text(RELU, encoding="utf-8")
    assert load(path).graph.outputs[0].name == "y"


def linear(weight: np.ndarray) -> ir.Model:
    model = proto_of(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) '
        "{ [mm] y = MatMul (x, w) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return load(model)


def test_non_finite_weights_are_found_when_asked_and_not_before() -> None:
    weight = np.ones((4, 4), np.float32)
    check_finite(linear(weight))
    weight[1, 2], weight[3, 3] = np.nan, np.inf
    with pytest.raises(UnsupportedGraph, match="'w' holds 1 NaN and 1 infinite of 16 values"):
        check_finite(linear(weight))
    weight[1, 2] = 0
    with pytest.raises(UnsupportedGraph, match="0 NaN and 1 infinite"):
        check_finite(linear(weight))


def test_an_attention_mask_of_minus_infinity_is_fine() -> None:
    model = proto_of(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) '
        "{ y = Add (x, mask) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.full(4, -np.inf, np.float32), "mask"))
    check_finite(load(model))


def test_an_empty_tensor_goes_through(tmp_path: Path) -> None:
    model = proto_of(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[M, 4] y) '
        "{ y = Concat <axis = 0> (x, nothing) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 4), np.float32), "nothing"))
    loaded = load(model)
    check_finite(loaded)
    again = load(save(loaded, tmp_path, external=True))
    assert read_weight(again.graph.initializers["nothing"]).shape == (0, 4)


def test_unknown_domains_go_through(tmp_path: Path) -> None:
    model = load(
        proto_of(
            '<ir_version: 8, opset_import: ["" : 17, "acme" : 3]> g (float[N] x) => (float[N] y) '
            "{ y = acme.Secret <level = 7> (x) }"
        )
    )
    again = load(save(model, tmp_path))
    node = next(iter(again.graph))
    assert (node.domain, node.op_type, again.opset_imports["acme"]) == ("acme", "Secret", 3)


def test_sparse_initializers_are_made_dense() -> None:
    model = proto_of(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x) => (float[2, 3] y) '
        "{ y = Add (x, s) }"
    )
    values = numpy_helper.from_array(np.array([5.0, 7.0], np.float32), "s")
    indices = numpy_helper.from_array(np.array([1, 5], np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 3]))
    dense = read_weight(load(model).graph.initializers["s"])
    np.testing.assert_array_equal(dense, [[0, 5, 0], [0, 0, 7]])
    assert len(model.graph.sparse_initializer) == 1, "the caller's model was changed"


def test_every_node_gets_a_name_of_its_own() -> None:
    model = proto_of(
        """<ir_version: 8, opset_import: ["" : 17]> g (bool c, float[N] x) => (float[N] y) {
        [same] a = Neg (x)
        b = Relu (a)
        [same] y = If (c) <
            then_branch = t () => (float[N] u) { [same] u = Neg (b) },
            else_branch = e () => (float[N] v) { v = Relu (b) }>
        }"""
    )
    names = [node.name for _, node in walk_nodes(load(model))]
    assert len(set(names)) == len(names) == 5
    assert all(names) and names[0] == "same"


def test_the_callers_model_is_not_changed() -> None:
    mine = ir.from_onnx_text(RELU)
    mine.ir_version = 99
    loaded = load(mine)
    assert mine.ir_version == 99 and loaded is not mine
    assert not list(walk_weights(loaded))
