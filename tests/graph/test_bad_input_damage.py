"""Whatever is damaged in a model: it goes through, or it is refused with a sentence of our own."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.errors import OnnxqError
from onnxq.graph import (
    check_finite,
    check_stage,
    ensure_opset,
    load,
    read_weight,
    save,
    walk_weights,
)

MODEL = """<ir_version: 10, opset_import: ["" : 12, "local" : 1]>
g (bool c, float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> {
    k = Constant <value = float[4] {1, 2, 3, 4}> ()
    a = Mul (x, k)
    m = Softmax <axis = 1> (a)
    [call] b = local.twice (m)
    [choose] y = If (c) <
        then_branch = t () => (float[N, 4] u) <float[4] tw = {5, 6, 7, 8}> {
            p = Add (b, tw) u = Clip (p) },
        else_branch = e () => (float[N, 4] v) {
            ew = Constant <value_float = 9.0> () v = Mul (b, ew) }>
}
<domain: "local", opset_import: ["" : 12]> twice (p) => (q) {
    two = Constant <value = float {2}> ()
    q = Mul (p, two)
}"""
NAMES = ["x", "y", "a", "", "nobody", "w", "Relu", "Softmax", "com.microsoft"]
NUMBERS = [0, 1, -1, 3, 27, 99, 2**31 - 1]


def messages(message: Any) -> list[Any]:
    found = [message]
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                found += messages(inner)
    return found


def damage(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Clear, delete, double, exchange or overwrite one field somewhere in the protobuf."""
    everything = messages(model)
    message = everything[rng.integers(len(everything))]
    fields = message.ListFields()
    if not fields:
        return
    field, value = fields[rng.integers(len(fields))]
    name = NAMES[rng.integers(len(NAMES))]
    number = NUMBERS[rng.integers(len(NUMBERS))]
    if rng.random() < 0.3:
        message.ClearField(field.name)
    elif field.is_repeated:
        at, other = (int(rng.integers(len(value))) for _ in range(2))
        if rng.random() < 0.4:
            del value[at]
        elif field.type == field.TYPE_MESSAGE:
            (value.add() if rng.random() < 0.5 else value[at]).CopyFrom(value[other])
        elif field.type == field.TYPE_STRING:
            value[at] = name
        elif field.type != field.TYPE_BYTES:
            value[at] = type(value[at])(number)
    elif field.type == field.TYPE_STRING:
        setattr(message, field.name, name)
    elif field.type == field.TYPE_BYTES:
        setattr(message, field.name, value[: len(value) // 2])
    elif field.type not in (field.TYPE_MESSAGE, field.TYPE_ENUM):
        setattr(message, field.name, type(value)(number))


@pytest.mark.parametrize("seed", range(3))
def test_damage_is_refused_or_harmless(
    tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    rng = np.random.default_rng(seed)
    whole = onnx.parser.parse_model(MODEL)
    refused = passed = 0
    for _ in range(100):
        model = onnx.ModelProto()
        model.CopyFrom(whole)
        for _ in range(rng.integers(1, 3)):
            damage(model, rng)
        try:
            loaded = load(model)
            for _, value in walk_weights(loaded):
                read_weight(value)
            check_finite(loaded)
            load(save(loaded, tmp_path / "m.onnx"))
            ensure_opset(loaded, 21)
            check_stage(loaded)
            passed += 1
        except OnnxqError as error:
            assert len(str(error)) > 40 and str(error).endswith("."), error
            refused += 1
    assert refused > 15 and passed > 15
