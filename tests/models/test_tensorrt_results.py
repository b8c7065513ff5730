"""The page of engines: a row for each file, a column for each form, refusals as sentences."""

from onnxq.models.tensorrt_results import FORMS, measure_cell, tensorrt_part

BUILT = {"bytes": 2_500_000, "sites": {"integer kernel": 3}, "wasted": {"residual": 2}}


def test_rows_and_refusals():
    cells = {
        ("one", "model", "float32"): {**BUILT, "wasted": {}},
        ("one", "model", "int8"): BUILT,
        ("one", "model", "int4"): {"refused": "the parser says no\n  more"},
        ("two", "encoder", "float32"): {"refused": "BitShift"},
        ("two", "encoder", "int8"): {"refused": "as in float32: BitShift"},
    }
    lines = tensorrt_part(cells).splitlines()
    assert lines[0] == "| model | " + " | ".join(FORMS) + " |"
    assert lines[2] == (
        "| `one` model | 2.5 MB; 3 integer kernel | – | 2.5 MB; 3 integer kernel; 2 wasted |"
        " refused | – |"
    )
    assert lines[3].startswith("| `two` encoder | refused | – | refused |")
    assert lines[-2:] == [
        "- `one` model, int4: the parser says no",
        "- `two` encoder, float32: BitShift",
    ]


def test_a_refusal_is_a_cell(monkeypatch, tmp_path):
    """Whatever onnxq refuses on the way is kept as its sentence."""
    from onnxq.models import tensorrt_results

    class Absent:
        def built(self, work):
            return {"model": work / "none.onnx"}

    monkeypatch.setattr(tensorrt_results, "tasks", lambda: {"absent": Absent()})
    found = measure_cell("absent", "model", "float32", tmp_path)
    assert set(found) == {"refused"} and "none.onnx" in found["refused"]
