"""Every operator of the table on every node test of ONNX, against the reference and the runtime."""

from __future__ import annotations

import collections
import functools
import re
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from onnxq.errors import OnnxqError, UnsupportedGraph
from onnxq.graph.versions import fit_runtime
from onnxq.learning import TorchGraph
from onnxq.learning.operators import known_operators
from onnxq.learning.operators.types import tensor_of
from onnxq.runtime import open_session

# What TorchGraph refuses, and says so: the sentence is part of the test.
REFUSED = {
    r"^test_cast(like)?_.*_to_(FLOAT8|FLOAT4|U?INT[24])": "a cast to",
    r"^test_cast_e8m0_FLOAT8E8M0|string": "Tensors of type",
    r"^test_batchnorm_.*training_mode": "its training mode is not computed",
    r"^test_training_dropout(_default|_mask|_default_mask)?$": "random numbers",
    r"^test_maxpool_with_argmax": "indices it gives",
    r"^test_quantizelinear_(e4m3fn|e5m2|float4e2m1)": "codes of type",
    r"^test_resize_tf_crop": "tf_crop_and_resize is not computed",
    r"^test_resize_.*antialias": "antialias is not computed",
    r"^test_upsample_nearest": "before opset 11",
}
# Torch stores these, and computes with few of them.
UNSIGNED = re.compile(r"_uint(16|32|64)|bitwise_not_3d")
# Where ONNX's reference and the runtime part, this room follows the runtime.
NOT_THE_REFERENCE = {
    r"^test_resize_downsample_scales_(linear|cubic)_align_corners$": (
        "the reference spreads the corners over a size that is not a whole number"
    ),
}
NOT_THE_RUNTIME = {
    r"^test_attention_.*_qk_matmul_bias": "it gives the least float where the reference gives -inf",
}


def _like(name: str, table: dict[str, str]) -> str | None:
    return next((said for pattern, said in table.items() if re.search(pattern, name)), None)


@functools.cache
def _cases() -> dict[str, list[object]]:
    """The node tests whose operators are all in the table, each under its rarest operator."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = load_model_tests(kind="node")
    known = known_operators()
    used = [(case, _operators(case.model)) for case in every]
    count = collections.Counter(name for _, names in used for name in names)
    found = collections.defaultdict(list)
    for case, names in used:
        if names and names <= known:
            found[min(names, key=lambda name: (count[name], name))[1]].append(case)
    return dict(found)


def _operators(model: onnx.ModelProto) -> set[tuple[str, str]]:
    return {("" if n.domain == "ai.onnx" else n.domain, n.op_type) for n in model.graph.node}


def _array(data: object, dtype: ir.DataType) -> np.ndarray:
    found = onnx.numpy_helper.to_array(data) if isinstance(data, onnx.TensorProto) else data
    array = np.asarray(found)
    return array if array.dtype == dtype.numpy() else array.view(dtype.numpy())


def _close(got: torch.Tensor, want: np.ndarray, dtype: ir.DataType, name: str) -> None:
    wanted = tensor_of(np.array(want), dtype)
    assert got.dtype == wanted.dtype, name
    assert got.shape == wanted.shape, name
    # Steps of one unit of the type, and the tolerance of the node tests themselves for the rest.
    rtol = {torch.bfloat16: 2**-6, torch.float16: 2**-9}.get(got.dtype, 1e-3)
    if got.dtype.is_floating_point:
        torch.testing.assert_close(
            got.double(),
            wanted.double(),
            rtol=rtol,
            atol=1e-5,
            equal_nan=True,
            msg=lambda m: name + m,
        )
    else:
        assert torch.equal(got, wanted), name


def _check(case: object) -> bool:
    """Compare one case; whether the runtime could run it too."""
    model = ir.from_proto(case.model)
    refusal = _like(case.name, REFUSED)
    outputs = [value for value in model.graph.outputs if value.name]
    feeds_of = [
        {v.name: _array(a, v.dtype) for v, a in zip(model.graph.inputs, given, strict=True)}
        if refusal != "Tensors of type"
        else {}
        for given, _ in case.data_sets
    ]

    def run(feeds: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        graph = TorchGraph(
            model, inputs=[v.name for v in model.graph.inputs], outputs=[v.name for v in outputs]
        )
        types = {v.name: v.dtype for v in model.graph.inputs}
        return graph({name: tensor_of(np.array(a), types[name]) for name, a in feeds.items()})

    if refusal is not None:
        with pytest.raises(UnsupportedGraph, match=refusal):
            if refusal == "Tensors of type":
                tensor_of(np.zeros(1), (model.graph.inputs[0].dtype))
                tensor_of(np.zeros(1), (model.graph.outputs[0].dtype))
            run(feeds_of[0])
        return False
    ran = False
    for feeds, (_, wanted) in zip(feeds_of, case.data_sets, strict=True):
        try:
            got = run(feeds)
        except UnsupportedGraph as error:
            if UNSIGNED.search(case.name) and "not implemented for 'UInt" in str(error):
                return False
            raise
        if _like(case.name, NOT_THE_REFERENCE) is None:
            for value, want in zip(model.graph.outputs, wanted, strict=True):
                _close(got[value.name], _array(want, value.dtype), value.dtype, case.name)
        ran |= _same_as_runtime(case, model, feeds, got)
    return ran


def _same_as_runtime(case, model: ir.Model, feeds, got) -> bool:
    if _like(case.name, NOT_THE_RUNTIME) is not None:
        return False
    try:
        fit_runtime(model)
        with open_session(ir.to_proto(model).SerializeToString(), threads=1, lean=True) as session:
            found = session.run(feeds)
    except OnnxqError:  # no kernel for this type or opset: the reference alone is compared
        return False
    for value in model.graph.outputs:
        _close(got[value.name], _array(found[value.name], value.dtype), value.dtype, case.name)
    return True


_STANDARD = sorted(name for domain, name in known_operators() if not domain)


@pytest.mark.parametrize("name", _STANDARD)
def test_node_tests_of_onnx(name: str) -> None:
    for case in _cases().get(name, []):
        if not case.name.endswith("_expanded"):
            _check(case)


@pytest.mark.slow
@pytest.mark.parametrize("name", _STANDARD)
def test_node_tests_of_onnx_in_terms_of_other_operators(name: str) -> None:
    for case in _cases().get(name, []):
        if case.name.endswith("_expanded"):
            _check(case)


def test_every_standard_operator_has_a_node_test() -> None:
    covered = {
        name for cases in _cases().values() for c in cases for _, name in _operators(c.model)
    }
    # The runtime's own, which it also has in the domain of ONNX: test_fused_operators.
    assert set(_STANDARD) - covered == {"SimplifiedLayerNormalization"}
