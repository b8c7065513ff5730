"""TensorRT's rules: each has a graph that keeps and one that breaks it, and TensorRT-RTX agrees."""

import pytest

from onnxq.errors import UnsupportedGraph
from onnxq.export.target import Execution
from onnxq.export.tensorrt_operators import FOREIGN, UNPARSED
from onnxq.export.tensorrt_plan import products_of
from onnxq.export.tensorrt_reading import Reading
from onnxq.export.tensorrt_rules import RULES, Effect, find_violations
from onnxq.export.to_tensorrt import TensorRtRtx
from onnxq.graph import save
from tests.export.tensorrt_graphs import CASES

UNLIKE = ("code-type", "int4-blocks", "fp4-scales", "both-inputs", "residual", "no-kernel")
"""Cases whose graphs that keep the rules differ from one another."""

EFFECTS = {rule.name: rule.effect for rule in RULES}


def broken(model, capabilities=(120,)):
    return find_violations(Reading(model, "tensorrt", capabilities))


def test_every_rule_has_its_two_graphs_a_source_and_a_sentence():
    assert [rule.name for rule in RULES] == list(EFFECTS) and set(EFFECTS) == set(CASES)
    for rule in RULES:
        assert rule.sentence.endswith(".") and len(rule.source) > 10


@pytest.mark.parametrize("name", CASES)
def test_a_graph_that_keeps_the_rule_keeps_all(name):
    case = CASES[name]()
    assert [str(v) for v in broken(case.keeps, case.capabilities)] == []


@pytest.mark.parametrize("name", CASES)
def test_a_graph_that_breaks_the_rule_is_caught_by_its_name(name):
    case = CASES[name]()
    found = broken(case.breaks, case.capabilities)
    mine = [v for v in found if v.rule.name == name]
    assert mine and case.says in f"{mine[0].finding.found}; {mine[0].finding.remedy}"
    assert mine[0].finding.name in str(mine[0]) and mine[0].node in set(case.breaks.graph)


@pytest.mark.parametrize(
    ("name", "side"), [*((name, "keeps") for name in UNLIKE), *((name, "breaks") for name in CASES)]
)
def test_tensorrt_rtx_does_as_the_rules_say(name, side, tmp_path):
    """What is said to be refused is; of the rest an engine is built whose products run as said."""
    pytest.importorskip("tensorrt_rtx")
    case = CASES[name]()
    model = getattr(case, side)
    target = TensorRtRtx(capabilities=case.capabilities)
    path = save(model, tmp_path / "m.onnx")
    verdicts = target.check(model)
    if side == "breaks" and EFFECTS[name] in (Effect.REFUSED, Effect.MISREAD):
        does = "would read" if EFFECTS[name] is Effect.MISREAD else "'s .* refuses"
        with pytest.raises(UnsupportedGraph, match=rf"TensorRT ?{does}(.|\n)*\[{name}[:\]]"):
            target.build(path, tmp_path)
        return
    target.build(path, tmp_path)
    products = products_of((tmp_path / "m.engine").read_bytes())
    said = {v.site: v.execution for v in verdicts.sites if v.execution is not Execution.UNSUPPORTED}
    for site, execution in said.items():
        assert products[site].agrees(execution), (site, execution, products[site])


def test_operators_are_those_of_the_parser():
    """Of all operators of ONNX, the parser has what the table says it has."""
    trt = pytest.importorskip("tensorrt_rtx")
    from onnx.defs import get_all_schemas

    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    names = {schema.name for schema in get_all_schemas() if schema.domain == ""}
    assert {name for name in names if not parser.supports_operator(name)} == UNPARSED
    assert all(parser.supports_operator(name) for name in FOREIGN)
