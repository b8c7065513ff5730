"""``python -m tests.typecheck``: mypy --strict on the package as a user installs it.

mypy follows the folder mapping only on a wheel that is really installed, so one is built and
installed into a temporary folder and checked from there.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    with tempfile.TemporaryDirectory() as target:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                target,
                ".",
            ],
            cwd=ROOT,
            check=True,
        )
        return subprocess.run(
            [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "-p", "onnxq"],
            cwd=target,
            env={**os.environ, "MYPYPATH": target},
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
