"""Every pass is found under the snake_case of its class, and can be made without arguments."""

import dataclasses

from onnxq.passes.base import Pass, Promise
from onnxq.passes.registry import all_passes


def test_keys_are_the_snake_case_of_the_classes_and_the_names_of_the_modules():
    for key, cls in all_passes().items():
        assert issubclass(cls, Pass)
        assert cls.key() == key
        assert cls.__module__ == f"onnxq.passes.{key}"


def test_every_pass_is_frozen_documented_and_promises_something():
    for cls in all_passes().values():
        step = cls()
        assert isinstance(step.promise, Promise)
        assert step.__dataclass_params__.frozen
        assert all(word in (cls.__doc__ or "") for word in ("Matches:", "Writes:", "Leaves:"))
        assert set(step.options()) == {field.name for field in dataclasses.fields(step)}
