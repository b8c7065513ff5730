"""As much of ``tensorrt.plugin`` as plugins in Python need, with what it asks of signatures.

Sizes are expressions over the first size of the first input, evaluated for a number when asked.
"""

import inspect
import typing


class ShapeExpr:
    """A size: ``at(n)`` is its value where the dynamic size is ``n``."""

    def __init__(self, value=None):
        if isinstance(value, ShapeExpr):
            value = value.at
        self.at = value if callable(value) else lambda n: n if value is None else value

    def _with(self, other, work):
        assert isinstance(other, int | ShapeExpr)
        right = other if isinstance(other, ShapeExpr) else ShapeExpr(other)
        return type(self)(lambda n: int(work(self.at(n), right.at(n))))

    def __add__(self, other):
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other):
        return self._with(other, lambda a, b: a - b)

    def __mul__(self, other):
        return self._with(other, lambda a, b: a * b)

    def __floordiv__(self, other):
        return self._with(other, lambda a, b: a // b)

    def __eq__(self, other):
        return self._with(other, lambda a, b: a == b)

    def __lt__(self, other):
        return self._with(other, lambda a, b: a < b)

    def __bool__(self):
        raise RuntimeError("no number is known for this expression")


class SymInt32(ShapeExpr):
    """An integer for a kernel."""


class SymIntExprs(list):
    @classmethod
    def from_tuple(cls, values):
        assert all(isinstance(value, SymInt32) for value in values)
        return cls(values)


class KernelLaunchParams:
    grid_x = grid_y = grid_z = block_x = block_y = block_z = 1
    shared_mem = 0


class AutoTuneCombination:
    def __init__(self, types, layouts):
        self.types, self.layouts = types, layouts


class _Type:
    def __init__(self, name):
        self.name = name


class ShapeExprs(list):
    def __setitem__(self, axis, size):
        super().__setitem__(axis, size if isinstance(size, ShapeExpr) else ShapeExpr(size))


class TensorDesc:
    """``shape`` may begin with -1, which is the dynamic size."""

    def __init__(self, shape, type_):
        self.shape, self.dtype = shape, _Type(type_)
        self.shape_expr = ShapeExprs(ShapeExpr(None if size == -1 else size) for size in shape)

    def like(self):
        made = TensorDesc(self.shape, self.dtype.name)
        made.shape_expr = ShapeExprs(self.shape_expr)
        return made


def cdiv(first, second):
    return first._with(second, lambda a, b: -(-a // b))


class Module:
    """``tensorrt.plugin``: what was registered is in ``plugins``."""

    ShapeExpr, SymInt32, SymIntExprs, TensorDesc = ShapeExpr, SymInt32, SymIntExprs, TensorDesc
    KernelLaunchParams, AutoTuneCombination = KernelLaunchParams, AutoTuneCombination
    cdiv = staticmethod(cdiv)

    def __init__(self):
        self.plugins = {}

    def register(self, plugin_id):
        def decorate(function):
            inputs, attributes = [], []
            signature = inspect.signature(function)
            for name, parameter in signature.parameters.items():
                assert parameter.default is inspect.Parameter.empty
                if parameter.annotation is TensorDesc:
                    assert not attributes, "inputs come before attributes"
                    inputs.append(name)
                else:
                    assert parameter.annotation is int and name not in ("outputs", "tactic")
                    attributes.append(name)
            assert signature.return_annotation is TensorDesc
            namespace, _, name = plugin_id.partition("::")
            assert namespace == "onnxq" and "." not in name and plugin_id not in self.plugins
            self.plugins[plugin_id] = {"inputs": inputs, "attributes": attributes, "y": function}
            return function

        return decorate

    def autotune(self, plugin_id):
        return self._second(plugin_id, "types", ["outputs"])

    def aot_impl(self, plugin_id):
        def decorate(function):
            returned = typing.get_args(inspect.signature(function).return_annotation)
            assert returned[:2] == (str, str)
            assert issubclass(returned[2], KernelLaunchParams)
            assert issubclass(returned[3], SymIntExprs)
            return self._second(plugin_id, "kernel", ["outputs", "tactic"])(function)

        return decorate

    def _second(self, plugin_id, key, behind):
        def decorate(function):
            found = self.plugins[plugin_id]
            wanted = [*found["inputs"], *found["attributes"], *behind]
            assert list(inspect.signature(function).parameters) == wanted
            found[key] = function
            return function

        return decorate
