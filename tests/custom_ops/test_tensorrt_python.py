"""Plugins in Python before the real ``tensorrt.plugin``, without a GPU.

The package tensorrt-cu13-bindings holds ``tensorrt.plugin`` as Python source; its library of
bindings needs TensorRT's own, so that those of TensorRT-RTX stand in for it, and numbers for the
expressions of shapes.
"""

import importlib.util
import sys
import types

import pytest

from onnxq.custom_ops.tensorrt import python
from onnxq.custom_ops.tensorrt.nodes import PLUGINS, blocks_of
from tests.custom_ops.test_tensorrt_nodes import launched, product

trt = pytest.importorskip("tensorrt_rtx")
SOURCE = importlib.util.find_spec("tensorrt_bindings")

pytestmark = [
    pytest.mark.trt,
    pytest.mark.skipif(
        SOURCE is None, reason="tensorrt-cu13-bindings is not installed: make test-tensorrt"
    ),
]


class Size:
    """An expression that is known: what ``IDimensionExpr`` is in an engine."""

    def __init__(self, value):
        self.value = int(value)

    def is_constant(self):
        return True

    def get_constant_value(self):
        return self.value


def known(expression):
    """The number that an expression of ``tensorrt.plugin`` stands for."""
    return expression._expr.get_constant_value()


class Sizes:
    """``IExprBuilder``."""

    _WORK = types.MappingProxyType(
        {
            "SUM": lambda a, b: a + b,
            "SUB": lambda a, b: a - b,
            "PROD": lambda a, b: a * b,
            "EQUAL": lambda a, b: a == b,
            "LESS": lambda a, b: a < b,
            "FLOOR_DIV": lambda a, b: a // b,
            "CEIL_DIV": lambda a, b: -(-a // b),
        }
    )

    def constant(self, value):
        return Size(value)

    def operation(self, kind, first, second):
        return Size(self._WORK[kind.name](first.value, second.value))


@pytest.fixture(scope="module")
def module():
    """``tensorrt.plugin``, all operators registered with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", trt)
        patch.setattr(trt, "IDimensionExpr", Size)
        patch.setattr(trt, "DimsExprs", lambda count: [None] * count)
        for name in ("IPluginV3QuickAOTBuild", "ISymExpr", "QuickPluginCreationRequest"):
            if not hasattr(trt, name):
                patch.setattr(trt, name, type(name, (), {}), raising=False)
        (folder,) = SOURCE.submodule_search_locations
        spec = importlib.util.spec_from_file_location(
            "tensorrt.plugin",
            f"{folder}/plugin/__init__.py",
            submodule_search_locations=[f"{folder}/plugin"],
        )
        made = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "tensorrt.plugin", made)
        patch.setattr(trt, "plugin", made, raising=False)
        spec.loader.exec_module(made)
        patch.setattr(python, "kernel_text", lambda operator, kernel: f"PTX of {kernel}")
        python.register_plugins(made)
        yield made
        for name in [name for name in sys.modules if name.startswith("tensorrt.plugin.")]:
            del sys.modules[name]


def test_every_plugin_is_in_the_registry(module):
    found = {
        creator.name: [field.name for field in creator.field_names]
        for creator in trt.get_plugin_registry().all_creators
        if creator.plugin_namespace == "onnxq"
    }
    assert found == {name: list(node.attributes) for name, node in PLUGINS.items()}


@pytest.mark.parametrize("fmt", ("int4_g24", "lut4", "vq_d4n256", "e8p3_tensor", "trellis2_hyb"))
@pytest.mark.parametrize("tokens", (1, 4, 8, 9, 130))
def test_expressions_of_a_launch_are_those_of_the_table(fmt, tokens, module):
    spec, attributes, arrays = product(fmt)
    found = module._lib.QDP_REGISTRY[f"onnxq::{spec.name}"]
    types_ = {"uint8": trt.int8, "int8": trt.int8, "float16": trt.float16, "float32": trt.float32}
    shapes = [(tokens, attributes["columns"]), *(array.shape for array in arrays)]
    kinds = [trt.float16, *(types_[array.dtype.name] for array in arrays)]
    expr = sys.modules["tensorrt.plugin._tensor"].SymIntExpr
    expr._exprBuilder = Sizes()
    try:
        inputs = []
        for shape, kind in zip(shapes, kinds, strict=True):
            desc = module.TensorDesc(
                module.ShapeExprs.from_tuple([module.ShapeExpr(Size(size)) for size in shape]), kind
            )
            inputs.append(desc)
        values = {name: attributes[name] for name in found.input_attrs}
        y = found.register_func(*inputs, **values)
        assert [size.constant_value() for size in y.shape_expr] == [tokens, attributes["rows"]]
        for desc, shape in zip(inputs, shapes, strict=True):
            desc.shape = module.Shape(tuple(shape))
        (combination,) = found.autotune_func(*inputs, *values.values(), (y,))
        every = [tuple(c.types) for c in combination._get_combinations()]
        assert (*kinds, trt.float16) in every and len(set(every)) == len(every)
        name, _, how, integers = found.aot_impl_func(*inputs, *values.values(), (y,), 0)
        launch = launched(fmt, half=True)
        assert name == launch.kernel and isinstance(how, module.KernelLaunchParams)
        assert [known(value) for value in integers] == [tokens, *launch.integers]
        wanted = blocks_of(launch, tokens, lambda a, b: -(-a // b))
        assert (known(how.grid_x), known(how.grid_y)) == wanted
    finally:
        expr._exprBuilder = None
