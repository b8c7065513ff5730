"""What the command line lists of formats: names, operators, solvers, distortion."""

import json

import pytest
from typer.testing import CliRunner

from onnxq.catalog import format_choice, format_values, operators_of, solvers_of
from onnxq.cli import app
from onnxq.custom_ops.catalog import SPECS
from onnxq.errors import FormatError
from onnxq.formats import FAMILIES, format_names, parse_format


def rows_of(*arguments):
    done = CliRunner().invoke(app, ["formats", "--json", *arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_every_family_is_listed_and_every_listed_format_can_be_computed_with():
    rows = format_values()
    assert {parse_format(row["format"]).__class__ for row in rows} >= set(FAMILIES)
    assert all(row["operators"] for row in rows)
    assert all({"nearest", "gptq"} <= set(row["solvers"]) for row in rows)


def test_all_lists_every_name_in_common_use():
    assert [row["format"] for row in rows_of("--all")] == format_names()


def test_one_name_or_a_pattern():
    assert [row["format"] for row in rows_of("--only", "int4_g96")] == ["int4_g96"]
    assert format_choice(["int4_g*"]) == [
        name for name in format_names() if name.startswith("int4_g")
    ]
    with pytest.raises(FormatError, match="'int9' is not a format; the nearest name is"):
        format_choice(["int9"])
    with pytest.raises(FormatError, match="no listed format is like 'float\\*'"):
        format_choice(["float*"])


def test_integers_have_operators_of_the_runtime():
    assert operators_of(parse_format("int4_g128"))[:2] == ["MatMulNBits", "DequantizeLinear"]
    assert "MatMulNBits" not in operators_of(parse_format("int3_g128"))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_operator_is_the_one_of_some_listed_format(spec):
    assert any(spec.name in row["operators"] for row in format_values(every=True))


def test_solvers_are_those_that_say_they_take_the_format():
    assert {"nearest", "easyquant", "decoupleq"} <= set(solvers_of(parse_format("int4")))
    for family in FAMILIES:
        found = solvers_of(parse_format(family.names()[0]))
        assert {"nearest", "gptq", "gptaq"} <= set(found)
        assert "decoupleq" not in found


def test_distortion_stands_beside_its_bound():
    (row,) = rows_of("--distortion", "--only", "int4_g128")
    assert row["2^(-2R)"] == pytest.approx(2 ** (-2 * row["bits"]))
    assert row["ratio"] == pytest.approx(row["squared error"] / row["2^(-2R)"])
    assert row["squared error"] == pytest.approx(0.0106, rel=0.02)
