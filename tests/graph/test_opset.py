"""A converted model computes what it computed: measured on ONNX Runtime, rule by rule."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.errors import UnsupportedGraph
from onnxq.graph import ensure_opset, load, opset_of, save, walk_nodes
from onnxq.graph.opset import infer_shapes
from onnxq.graph.upgrade import RULES
from onnxq.graph.versions import MAX_OPSET, operator_versions

SHAPE = (2, 4, 6, 8)
INPUT = "float[2, 4, 6, 8] x"


def one_node(opset: int, body: str, given: str = INPUT, result: str = "float y") -> ir.Model:
    """A model of one expression; the output's shape is left open."""
    text = f'<ir_version: 7, opset_import: ["" : {opset}]> g ({given}) => ({result}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return load(proto)


def run(model: ir.Model, folder: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    path = save(model, folder / "m.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def same_function(
    before: ir.Model, after: ir.Model, folder: Path, feeds: dict[str, np.ndarray]
) -> None:
    """Equal up to the rounding of one float32 kernel being replaced by another."""
    for expected, found in zip(run(before, folder, feeds), run(after, folder, feeds), strict=True):
        assert expected.shape == found.shape and expected.dtype == found.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


CASES = {
    "BatchNormalization-7": (
        7,
        """s = Constant <value = float[4] {1, 2, 3, 4}> ()
        m = Constant <value = float[4] {0, 1, 0, 1}> ()
        y = BatchNormalization <spatial = 1> (x, s, m, m, s)""",
    ),
    "BatchNormalization-9": (
        9,
        """s = Constant <value = float[4] {1, 2, 3, 4}> ()
        m = Constant <value = float[4] {0, 1, 0, 1}> ()
        y = BatchNormalization (x, s, m, m, s)""",
    ),
    "Clip-6": (7, "y = Clip <min = -0.5, max = 0.25> (x)"),
    "Clip-6 one side": (10, "y = Clip <min = -0.5> (x)"),
    "Dropout-7": (7, "y = Dropout <ratio = 0.9> (x)"),
    "Dropout-10": (10, "y = Dropout <ratio = 0.9> (x)"),
    "Hardmax-11": (11, "y = Hardmax (x)"),
    "LogSoftmax-11": (11, "y = LogSoftmax <axis = 2> (x)"),
    "Softmax-1 default": (7, "y = Softmax (x)"),
    "Softmax-11 default": (11, "y = Softmax (x)"),
    "Softmax-11 first": (11, "y = Softmax <axis = 0> (x)"),
    "Softmax-11 last": (11, "y = Softmax <axis = -1> (x)"),
    "Softmax-11 last but one": (11, "y = Softmax <axis = -2> (x)"),
    "Softmax-11 of unknown rank": (
        11,
        "s = Shape (x) r = Reshape (x, s) h = Softmax (r) y = Neg (h)",
    ),
    "Pad-2": (7, "y = Pad <pads = [0, 0, 1, 2, 0, 0, 3, 1], value = 1.5> (x)"),
    "Pad-2 reflect": (7, 'y = Pad <mode = "reflect", pads = [0, 0, 1, 2, 0, 0, 3, 1]> (x)'),
    "ReduceSum-11": (11, "y = ReduceSum <axes = [1, -1], keepdims = 0> (x)"),
    "ReduceMean-13": (13, "y = ReduceMean <axes = [1, -1]> (x)"),
    "ReduceMax-7 all": (7, "y = ReduceMax (x)"),
    "ReduceL2-13": (13, "y = ReduceL2 <axes = [2]> (x)"),
    "Resize-10 nearest up": (
        10,
        "s = Constant <value = float[4] {1, 1, 1.7, 2.3}> () y = Resize (x, s)",
    ),
    "Resize-10 nearest down": (
        10,
        "s = Constant <value = float[4] {1, 1, 0.7, 0.6}> () y = Resize (x, s)",
    ),
    "Resize-10 linear": (
        10,
        's = Constant <value = float[4] {1, 1, 1.7, 2.6}> () y = Resize <mode = "linear"> (x, s)',
    ),
    "Scatter-9": (
        9,
        """i = Constant <value = int64[1, 1, 1, 2] {1, 0}> ()
        u = Constant <value = float[1, 1, 1, 2] {9, 8}> () y = Scatter <axis = 3> (x, i, u)""",
    ),
    "Slice-1": (7, "y = Slice <starts = [1, 0], ends = [3, 5], axes = [1, 3]> (x)"),
    "Slice-1 all axes": (7, "y = Slice <starts = [0, 1, 0], ends = [1, 3, 5]> (x)"),
    "Split-11": (11, "a, b = Split <axis = 1, split = [1, 3]> (x) y = Neg (b)"),
    "Split-11 even": (11, "a, b = Split <axis = 1> (x) y = Neg (b)"),
    "Split-13": (13, "a, b = Split <axis = 1> (x) y = Neg (b)"),
    "Squeeze-11": (11, "h = ReduceMax <axes = [1], keepdims = 1> (x) y = Squeeze <axes = [1]> (h)"),
    "Squeeze-1 all": (7, "h = ReduceMax <axes = [1]> (x) y = Squeeze (h)"),
    "Unsqueeze-11": (11, "y = Unsqueeze <axes = [0, 3]> (x)"),
    "TopK-1": (7, "y, i = TopK <axis = 1, k = 2> (x)"),
    "TopK-10": (10, "k = Constant <value = int64[1] {3}> () y, i = TopK (x, k)"),
    "Upsample-7 nearest": (7, "y = Upsample <scales = [1.0, 1.0, 2.0, 3.0]> (x)"),
    "Upsample-7 linear": (
        7,
        'y = Upsample <mode = "linear", scales = [1.0, 1.0, 2.0, 3.0]> (x)',
    ),
    "Upsample-9": (
        9,
        "s = Constant <value = float[4] {1, 1, 2, 2}> () y = Upsample (x, s)",
    ),
    "RoiAlign-10": (
        10,
        """r = Constant <value = float[2, 4] {0, 0, 3, 4, 1, 1, 5, 4}> ()
        b = Constant <value = int64[2] {0, 1}> ()
        y = RoiAlign <output_height = 2, output_width = 3, sampling_ratio = 2> (x, r, b)""",
    ),
    "GridSample-16": (
        16,
        """z = Constant <value = float[1] {0.3}> () n = Shape (x)
        f = Constant <value = int64[4] {2, 3, 5, 2}> () g = Expand (z, f)
        y = GridSample <mode = "bicubic"> (x, g)""",
    ),
    "GridSample-16 default": (
        16,
        """z = Constant <value = float[1] {0.3}> ()
        f = Constant <value = int64[4] {2, 3, 5, 2}> () g = Expand (z, f) y = GridSample (x, g)""",
    ),
    "DFT-17": (
        17,
        "a = Constant <value = int64[1] {4}> () c = Unsqueeze (x, a) y = DFT <axis = 2> (c)",
    ),
    "DFT-17 default": (
        17,
        "a = Constant <value = int64[1] {4}> () c = Unsqueeze (x, a) y = DFT (c)",
    ),
    "LSTM-7": (
        7,
        f"""w = Constant <value = float[1, 4, 8] {{{", ".join(["0.1", "-0.2"] * 16)}}}> ()
        r = Constant <value = float[1, 4, 1] {{0.3, 0.1, -0.2, 0.4}}> ()
        m = ReduceMax <axes = [1]> (x) h = Squeeze <axes = [1]> (m)
        y = LSTM <hidden_size = 1> (h, w, r)""",
    ),
    "Gemm and friends-7": (
        7,
        """f = Flatten (x) t = Transpose (f) m = MatMul (f, t) g = Gemm <transB = 1> (m, m, m)
        c = Concat <axis = 0> (g, m) y = Elu (c)""",
    ),
    "MaxPool-8": (8, "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)"),
    "AveragePool-7": (7, "y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)"),
    "LpPool-11": (11, "y = LpPool <kernel_shape = [2, 2]> (x)"),
    "InstanceNormalization-6": (
        7,
        """s = Constant <value = float[4] {1, 2, 3, 4}> () y = InstanceNormalization (x, s, s)""",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", [13, 21, 25])
def test_each_rule_keeps_the_function(tmp_path: Path, case: str, target: int) -> None:
    opset, body = CASES[case]
    if opset >= target or ("RoiAlign" in case and target > 21):
        return
    before, after = one_node(opset, body), one_node(opset, body)
    assert ensure_opset(after, target)
    assert opset_of(after) == target
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    same_function(before, after, tmp_path, {"x": x})
    assert not ensure_opset(after, target)


def test_every_rule_has_a_case() -> None:
    tried = {case.split("-")[0] for case in CASES}
    refusing = {"Attention", "GroupNormalization", "Scan"}
    alike = {name for name, _ in RULES if name.startswith("Reduce")}
    converting = {name for name, version in RULES if version != 22}
    assert converting - tried - refusing - alike == set()


@pytest.mark.parametrize(
    ("opset", "body", "says"),
    [
        (6, "y = Add (x, x)", r"\(Add\): opsets below 7 broadcast differently"),
        (
            10,
            "s = Constant <value = float[4] {1, 1, 2, 0.5}> () y = Resize (x, s)",
            r"\(Resize\): it enlarges one axis and shrinks another",
        ),
        (21, "y = RandomNormalLike (x)", "no kernel for it from opset 22 on"),
        (
            23,
            """q = Reshape (x, s) s = Constant <value = int64[4] {2, 4, 6, 8}> ()
            a, b, c, y = Attention <qk_matmul_output_mode = 2> (q, q, q)""",
            "the values of qk_matmul_output_mode changed",
        ),
    ],
)
def test_what_cannot_be_converted_is_named(opset: int, body: str, says: str) -> None:
    model = one_node(opset, body)
    with pytest.raises(UnsupportedGraph, match=rf"at opset {opset} and cannot be .*{says}"):
        ensure_opset(model, 24)
    assert opset_of(model) == opset


def test_nothing_is_changed_when_one_node_cannot_be_converted() -> None:
    model = one_node(
        20,
        """s = Constant <value = float[2] {1, 2}> () h = ReduceMean (x)
        y = GroupNormalization <num_groups = 2> (h, s, s)""",
    )
    text = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(UnsupportedGraph, match=r"\(GroupNormalization\): .*per group to per chan"):
        ensure_opset(model, 21)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == text


def test_a_mask_of_another_type_is_refused_only_when_it_is_read() -> None:
    ensure_opset(one_node(9, "y, m = Dropout (x)"), 13)
    model = one_node(9, "h, m = Dropout (x) c = Cast <to = 1> (m) y = Add (h, c)")
    with pytest.raises(UnsupportedGraph, match="the type of its mask changed at opset 10"):
        ensure_opset(model, 13)


def test_a_batch_normalization_in_training_is_refused() -> None:
    body = """s = Constant <value = float[4] {1, 2, 3, 4}> ()
    h, a, b = BatchNormalization (x, s, s, s, s) y = Add (h, a)"""
    with pytest.raises(UnsupportedGraph, match="training"):
        ensure_opset(one_node(9, body), 21)


def test_no_further_than_the_runtime_goes() -> None:
    with pytest.raises(UnsupportedGraph, match=f"takes at most {MAX_OPSET}"):
        ensure_opset(one_node(17, "y = Relu (x)"), MAX_OPSET + 1)


BODIES = """<ir_version: 8, opset_import: ["" : 11, "local" : 1]>
g (bool c, float[2, 3, 4] x) => (float y) {
    a = local.norm (x)
    y = If (c) <
        then_branch = t () => (float[2, 4] u) { u = ReduceSum <axes = [1], keepdims = 0> (a) },
        else_branch = e () => (float v) { n = Squeeze <axes = [0]> (k) v = Softmax <axis = 0> (n) }>
    k = Unsqueeze <axes = [0]> (x)
}
<domain: "local", opset_import: ["" : 11]> norm (p) => (q) {
    s = Softmax (p)
    u = Unsqueeze <axes = [0]> (s)
    q = Squeeze <axes = [0]> (u)
}"""


def test_bodies_and_functions_are_converted(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(BODIES)
    for index in (0, 1):
        branch = proto.graph.node[1].attribute[index].g
        branch.output[0].type.tensor_type.ClearField("shape")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    before, after = load(proto), load(proto)
    assert ensure_opset(after, 21)
    assert after.functions["local", "norm", ""].opset_imports[""] == 21
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    for choice in (True, False):
        same_function(before, after, tmp_path, {"c": np.array(choice), "x": x})


def test_nodes_of_other_domains_are_left_alone() -> None:
    model = load(
        ir.from_onnx_text(
            """<ir_version: 8, opset_import: ["" : 11, "com.microsoft" : 1]>
            g (float[2, 4] x) => (float[2, 4] y) {
                h = com.microsoft.Gelu (x)
                y = com.microsoft.Softmax <axis = 0> (h)
            }"""
        )
    )
    before = [(node.op_type, dict(node.attributes)) for _, node in walk_nodes(model)]
    assert ensure_opset(model, 21)
    assert [(node.op_type, dict(node.attributes)) for _, node in walk_nodes(model)] == before
    assert model.opset_imports == {"": 21, "com.microsoft": 1}


def package_file(package: str, path: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(found.origin).parent / path


REAL = [
    ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", {"x": (1, 3, 64, 64)}),
    ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", {"x": (1, 3, 48, 64)}),
    ("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": (1, 3, 48, 192)}),
    (
        "silero_vad",
        "data/silero_vad_16k_op15.onnx",
        {"input": (1, 512), "state": (2, 1, 128), "sr": ()},
    ),
    ("silero_vad", "data/silero_vad.onnx", {"input": (1, 512), "state": (2, 1, 128), "sr": ()}),
]


@pytest.mark.parametrize(("package", "path", "shapes"), REAL, ids=lambda part: Path(str(part)).name)
def test_real_models_of_opset_11_to_16(
    tmp_path: Path, package: str, path: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    source = package_file(package, path)
    rng = np.random.default_rng(0)
    feeds = {
        name: np.array(16000) if name == "sr" else rng.random(shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    before = load(source)
    for target in (21, MAX_OPSET):
        after = load(source)
        assert ensure_opset(after, target)
        same_function(before, after, tmp_path, feeds)


def test_the_changelog_was_read_to_the_end() -> None:
    """Every operator whose new definition differs in structure has a rule, up to the last opset."""
    missing = []
    for name in {schema.name for schema in onnx.defs.get_all_schemas()}:
        versions = [v for v in operator_versions(name) if 7 <= v <= MAX_OPSET]
        for old, new in itertools.pairwise(versions):
            before = onnx.defs.get_schema(name, old, "")
            after = onnx.defs.get_schema(name, new, "")
            lost = set(before.attributes) - set(after.attributes)
            if (lost or after.min_input > before.min_input) and (name, new) not in RULES:
                missing.append((name, new, lost))
    assert missing == []


def test_shapes_go_on_behind_an_rms_norm_of_onnx_runtime():
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> main (float[2, 3, 4] x, float[4] g)'
        " => (float[2, 4, 3] y) { n = SimplifiedLayerNormalization <axis = -1> (x, g)"
        "  y = Transpose <perm = [0, 2, 1]> (n) }"
    )
    model = ir.from_onnx_text(text)
    infer_shapes(model)
    norm = model.graph[0]
    assert norm.op_type == "SimplifiedLayerNormalization"
    assert list(norm.outputs[0].shape) == [2, 3, 4]
