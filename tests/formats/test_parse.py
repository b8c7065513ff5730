import pytest

from onnxq.errors import FormatError
from onnxq.formats import (
    IntFormat,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    format_names,
    parse_format,
)


def test_names_mean_what_they_say():
    assert parse_format("int8_channel") == IntFormat(bits=8, granularity=PerChannel())
    assert parse_format("int8_tensor") == IntFormat(bits=8, granularity=PerTensor())
    assert parse_format("int4_g128") == IntFormat(bits=4, granularity=PerGroup(128))
    assert parse_format("int2_g64_asym") == IntFormat(
        bits=2, symmetric=False, granularity=PerGroup(64)
    )
    assert parse_format("int8_b128x64_f16") == IntFormat(
        bits=8, granularity=PerBlock(128, 64), scale_dtype="float16"
    )
    assert parse_format("int4_g32_pos").positive


def test_no_granularity_is_per_channel():
    assert parse_format("int4") == parse_format("int4_channel")


@pytest.mark.parametrize("suffix", ("", "_f16"))
def test_str_parses_back(suffix):
    for name in format_names():
        if suffix and not name.startswith("int"):
            continue
        fmt = parse_format(name + suffix)
        assert parse_format(str(fmt)) == fmt


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("int4_g12B", "int4_g128"), ("int4-g128", "int4_g128"), ("INT8_chanel", "int8_channel")],
)
def test_a_misspelt_name_gets_the_nearest(wrong, near):
    with pytest.raises(FormatError, match=f"nearest name is '{near}'"):
        parse_format(wrong)


@pytest.mark.parametrize("wrong", ("", "int9", "int4_g0", "float", "int4_g128_g64"))
def test_nonsense_is_refused_with_the_grammar(wrong):
    with pytest.raises(FormatError, match="A name is int<bits 1-8>"):
        parse_format(wrong)
