"""The package as it is installed: one copy of the code, quick to import, no heavy dependency."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_quick_and_needs_neither_torch_nor_a_runtime(tmp_path):
    code = (
        "import time, sys\nstart = time.perf_counter()\nimport onnxq\n"
        "print(time.perf_counter() - start)\n"
        "print([m for m in ('torch', 'onnxruntime', 'tensorrt', 'onnx') if m in sys.modules])"
    )
    seconds = []
    for _ in range(3):
        elapsed, heavy = python(code, tmp_path).splitlines()
        assert heavy == "[]"
        seconds.append(float(elapsed))
    assert min(seconds) < 0.3


@pytest.mark.parametrize("folder", ["root", "elsewhere"])
def test_there_is_one_copy_of_the_code(folder, tmp_path):
    code = (
        "import sys, onnxq.api, onnxq.cli\n"
        "print([m for m in ('passes', 'export', 'models', 'custom_ops') if m in sys.modules])"
    )
    assert python(code, ROOT if folder == "root" else tmp_path).strip() == "[]"


def test_no_module_imports_a_room_by_its_bare_folder_name():
    for path in ROOT.rglob("*.py"):
        if any(part in (".venv", "build", "demo") for part in path.parts):
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            first = line.split()[:2]
            if first[:1] in (["import"], ["from"]):
                room = first[1].split(".")[0]
                assert room not in ("passes", "export", "models", "custom_ops"), f"{path}: {line}"


def test_public_names_resolve():
    import onnxq

    for name in onnxq.__all__:
        assert getattr(onnxq, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        _ = onnxq.quantise
