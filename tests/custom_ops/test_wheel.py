"""The wheel as a user gets it: native parts inside, sources of them left out."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import numpy as np, onnx_ir as ir, onnxq
from onnxq.custom_ops.hadamard import hadamard_node
from onnxq.runtime import open_session
assert onnxq.ops_library().startswith({folder!r}), onnxq.ops_library()
x = ir.Value(name="x", shape=ir.Shape(["n", 64]), type=ir.TensorType(ir.DataType.FLOAT))
model = ir.Model(ir.Graph([x], [], nodes=[], opset_imports={{"": 21}}, name="g"), ir_version=10)
node = hadamard_node(model, x, 64, name="rotate")
model.graph.append(node)
model.graph.outputs.append(node.outputs[0])
with open_session(model) as session:
    print(session.run({{"x": np.eye(64, dtype=np.float32)}})["rotate_output"][0, :2])
"""


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_runs_from_another_folder(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
             "-C", f"build-dir={tmp_path / 'build'}", "-w", str(tmp_path), str(ROOT)]  # fmt: skip
    subprocess.run(build, check=True, timeout=900)
    (wheel,) = tmp_path.glob("onnxq-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert sum("libonnxq_ops." in name for name in names) == 1
    page = {"report.html", "comparison.html", "style.css", "script.js"}
    assert {f"onnxq/report/{name}" for name in page} <= {*names}
    assert not [name for name in names if name.endswith((".cpp", ".h", ".cu", "CMakeLists.txt"))]
    folder = str(tmp_path / "site")
    code = f"import sys; sys.path.insert(0, {folder!r})\n" + CODE.format(folder=folder)
    # -S leaves the editable install's import hook out; the other packages are added by hand
    packages = [path for path in sys.path if path.endswith("site-packages")]
    code = f"import sys; sys.path += {packages!r}\n" + code
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0.125 0.125]"
