"""The prepare passes on what torch's two exporters write for small transformers, end to end."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph import load
from onnxq.passes.base import Context
from onnxq.passes.promise import PromiseKeeper
from onnxq.passes.registry import all_passes

pytestmark = pytest.mark.slow

PREPARE = (
    "constants_to_initializers",
    "fold_constants",
    "convert_opset",
    "inline_functions",
    "fold_batch_norm",
    "fuse_layer_norm",
    "fuse_rms_norm",
    "fuse_gelu",
    "fuse_silu",
    "fuse_rope",
    "fuse_attention",
    "untie_weights",
    "clean",
)
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}


def network(kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2)
        inner = transformers.LlamaForCausalLM._from_config(config, attn_implementation="eager")
        options = {"use_cache": False}
    else:
        config = transformers.BertConfig(**SMALL, hidden_act=kind)
        inner = transformers.BertModel._from_config(config, attn_implementation="eager")
        options = {}

    class First(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, ids, mask):
            return self.inner(ids, attention_mask=mask, return_dict=False, **options)[0]

    return First().eval()


def exported(kind, dynamo, folder):
    torch = pytest.importorskip("torch")
    path = folder / "model.onnx"
    example = (torch.randint(0, 50, (2, 7)), torch.ones(2, 7, dtype=torch.int64))
    if dynamo:
        dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2, max=30)}
        program = torch.onnx.export(
            network(kind), example, dynamo=True, dynamic_shapes=(dims, dims), verbose=False
        )
        ir.save(program.model, path)
    else:
        axes = {0: "batch", 1: "length"}
        torch.onnx.export(
            network(kind), example, path, dynamo=False, opset_version=17,
            input_names=["ids", "mask"], dynamic_axes={"ids": axes, "mask": axes},
        )  # fmt: skip
    return load(path)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize(
    ("kind", "fires"),
    [
        (
            "llama",
            {"fuse_rms_norm": 5, "fuse_silu": 2, "fuse_rope": 4, "fuse_attention": 2},
        ),
        ("gelu", {"fuse_attention": 2}),
        ("gelu_new", {"fuse_gelu": 2, "fuse_attention": 2}),
    ],
)
def test_every_pattern_of_a_transformer_is_recognised(tmp_path, kind, fires, dynamo):
    model = exported(kind, dynamo, tmp_path)
    if kind == "gelu" and not dynamo:
        fires = {**fires, "fuse_gelu": 2}
    generator = np.random.default_rng(0)
    names = [value.name for value in model.graph.inputs]
    samples = [
        {names[0]: generator.integers(0, 50, shape), names[1]: np.ones(shape, np.int64)}
        for shape in ((1, 5), (3, 9))
    ]
    keeper = PromiseKeeper(model, samples)
    fired = {}
    for key in PREPARE:
        cls = all_passes()[key]
        step = cls(minimum=23) if key == "convert_opset" else cls()
        report = step.call(model, Context())
        keeper.check(key, step.promise, model)
        if key.startswith("fuse_") and report.changed:
            fired[key] = len(report.changed)
    assert fired == fires
