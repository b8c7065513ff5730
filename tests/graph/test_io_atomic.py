"""A save that dies at any moment leaves a whole model: the old one or the new one."""

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import CalibrationError, ModelSaveError
from onnxq.graph import add_weight, load, read_weight, replace_weight, save, walk_weights
from onnxq.graph.lock import output_lock

SIZE = 64
FINAL = {"model.onnx", "model.onnx.data"}


def generation(number: float) -> ir.Model:
    """A model whose weights and metadata all say ``number``, so that a mixture of saves shows."""
    model = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, {SIZE}] x) => (float[N, {SIZE}] y) {{ y = Identity (x) }}"""
    )
    first = model.graph.inputs[0]
    for name in ("a", "b"):
        weight = add_weight(
            model.graph,
            name,
            shape=(SIZE, SIZE),
            dtype=ir.DataType.FLOAT,
            compute=np.full((SIZE, SIZE), number, np.float32),
        )
        node = ir.node("MatMul", [first, weight], name=f"mm_{name}")
        node.outputs[0].name = f"h_{name}"
        model.graph.insert_before(model.graph.node(-1), node)
        first = node.outputs[0]
    model.graph.node(-1).replace_input_with(0, first)
    model.metadata_props["generation"] = str(float(number))
    return model


def number_in(path: Path) -> float:
    """Load the model, and require that it and all its weights are of one generation."""
    model = load(path)
    weights = [read_weight(value) for _, value in walk_weights(model)]
    assert len(weights) == 2
    numbers = {float(number) for weight in weights for number in np.unique(weight)}
    numbers.add(float(model.metadata_props["generation"]))
    assert len(numbers) == 1, f"a mixture of saves: {numbers}"
    return numbers.pop()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Killer:
    """Kill the process before or after its n-th call that changes the file system."""

    def __init__(self, count: int) -> None:
        self.left = count

    def wrap(self, call: Callable[..., object]) -> Callable[..., object]:
        def killing(*args: object, **kwargs: object) -> object:
            self._step()
            result = call(*args, **kwargs)
            self._step()
            return result

        return killing

    def _step(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def arm(self) -> None:
        for owner, name in (
            (os, "posix_fallocate"),
            (os, "fsync"),
            (Path, "replace"),
            (Path, "symlink_to"),
            (Path, "unlink"),
        ):
            setattr(owner, name, self.wrap(getattr(owner, name)))


def save_and_die(folder: Path, number: float, external: bool, count: int) -> bool:
    """Save in a forked process that is killed at step ``count``; True when it got to the end."""

    def child() -> None:
        Killer(count).arm()
        save(generation(number), folder, external=external)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


@pytest.mark.parametrize("old", [None, False, True])
@pytest.mark.parametrize("new", [False, True])
def test_killed_at_every_step(tmp_path: Path, old: bool | None, new: bool) -> None:
    finished, count, outcomes = False, 0, set()
    while not finished:
        folder = tmp_path / str(count)
        if old is not None:
            save(generation(1), folder, external=old)
        finished = save_and_die(folder, 2, new, count)
        if old is None and not (folder / "model.onnx").exists():
            outcomes.add(None)
        else:
            outcomes.add(number_in(folder))
        # The next save cleans up, whatever was left.
        save(generation(3), folder, external=True)
        assert number_in(folder) == 3
        assert names(folder) == FINAL
        assert not (folder / "model.onnx.data").is_symlink()
        count += 1
    assert outcomes == {1.0 if old is not None else None, 2.0}
    assert count > 10


def test_killed_twice_in_a_row_at_every_pair_of_steps(tmp_path: Path) -> None:
    """What one killed run left is not what the next one falls over."""
    steps = 0
    while not save_and_die(tmp_path / "count" / "x", 1, True, steps):
        steps += 1
    for first in range(0, 2 * steps, 6):
        folder = tmp_path / str(first)
        save(generation(1), folder, external=True)
        save_and_die(folder, 2, True, first)
        for second in range(0, 2 * steps, 9):
            save_and_die(folder, 3, True, second)
            assert number_in(folder) in (1, 2, 3)
    save(generation(4), folder, external=True)
    assert names(folder) == FINAL


def test_killed_from_outside_in_the_middle_of_saving(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, numpy as np
        sys.path.insert(0, sys.argv[1])
        from onnxq.graph import load, replace_weight, save, walk_weights
        model = load(sys.argv[2])
        def slow():
            print("computing", flush=True)
            import time; time.sleep(20)
        for _, value in walk_weights(model):
            if value.name == "b":
                replace_weight(value, shape=value.shape, dtype=value.dtype, compute=slow)
        save(model, sys.argv[2], external=True)
        """
    )
    save(generation(1), tmp_path, external=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    command = [sys.executable, "-c", script, str(Path.cwd()), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"computing\n"
        with pytest.raises(ModelSaveError, match=f"another run .process {process.pid}."):
            save(generation(2), tmp_path, external=True)
        process.kill()
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content
    assert number_in(tmp_path) == 1
    assert names(tmp_path) > FINAL, "nothing was left behind, so nothing was killed"
    save(generation(2), tmp_path, external=True)
    assert names(tmp_path) == FINAL


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("call", ["posix_fallocate", "fsync"])
def test_a_full_disk_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool, call: str
) -> None:
    save(generation(1), tmp_path, external=external)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(ModelSaveError, match=r"No space left.*untouched.*32768 bytes.*make space"):
        save(generation(2), tmp_path, external=True)
    monkeypatch.undo()
    assert number_in(tmp_path) == 1
    assert names(tmp_path) == (FINAL if external else {"model.onnx"})


def test_a_real_file_size_limit_leaves_the_old_model(tmp_path: Path) -> None:
    save(generation(1), tmp_path, external=True)

    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        try:
            save(generation(2), tmp_path, external=True)
        except ModelSaveError as error:
            os._exit(7 if "File too large" in str(error) else 8)
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 7
    assert number_in(tmp_path) == 1
    assert names(tmp_path) == FINAL


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    save(generation(1), tmp_path)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(ModelSaveError, match="cannot be written: Permission denied"):
            save(generation(2), tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert number_in(tmp_path) == 1


def test_a_folder_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(ModelSaveError, match="what was there is untouched"):
        save(generation(1), tmp_path / "taken" / "model.onnx")
    with pytest.raises(ModelSaveError, match=r"saved as \.onnx, not \.pt"):
        save(generation(1), tmp_path / "model.pt")


def test_a_weight_that_fails_leaves_the_old_model(tmp_path: Path) -> None:
    save(generation(1), tmp_path, external=True)
    model = generation(2)

    def broken() -> np.ndarray:
        raise CalibrationError("weight b has no statistics")

    weight = model.graph.initializers["b"]
    replace_weight(weight, shape=(SIZE, SIZE), dtype=ir.DataType.FLOAT, compute=broken)
    for external in (True, False):
        with pytest.raises(CalibrationError, match="no statistics"):
            save(model, tmp_path, external=external)
    assert number_in(tmp_path) == 1
    assert names(tmp_path) == FINAL


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    with (
        output_lock(target),
        pytest.raises(ModelSaveError, match=f"another run .process {os.getpid()}.*Wait for it"),
    ):
        save(generation(1), target)
    save(generation(1), target)
    assert names(tmp_path) == {"model.onnx"}


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    """Eight processes save as fast as they can; each either wins whole or is refused."""
    save(generation(0), tmp_path, external=True)

    def child(number: int) -> None:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            try:
                save(generation(number), tmp_path, external=True)
            except ModelSaveError as error:
                if "another run" not in str(error):
                    os._exit(8)
        os._exit(0)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=child, args=(number,)) for number in range(1, 9)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert number_in(tmp_path) > 0
    assert names(tmp_path) == FINAL


def test_saving_over_the_file_the_model_is_read_from(tmp_path: Path) -> None:
    save(generation(1), tmp_path, external=True)
    model = load(tmp_path)
    weight = model.graph.initializers["a"]
    source = ir.Value(name="source", const_value=weight.const_value)
    replace_weight(
        weight,
        shape=(SIZE, SIZE),
        dtype=ir.DataType.FLOAT,
        compute=lambda: read_weight(source) + 1,
    )
    for _ in range(3):
        save(model, tmp_path, external=True)
        written = load(tmp_path).graph.initializers
        assert read_weight(written["a"])[0, 0] == 2
        assert read_weight(written["b"])[0, 0] == 1
    # The model in memory still reads what it was loaded from.
    assert read_weight(source)[0, 0] == 1
    assert names(tmp_path) == FINAL


def test_data_that_another_model_reads_is_left_alone(tmp_path: Path) -> None:
    save(generation(1), tmp_path, external=True)
    shared = tmp_path / "with_past.onnx"
    shared.write_bytes((tmp_path / "model.onnx").read_bytes())
    for number in (2, 3):
        save(generation(number), tmp_path / "model.onnx", external=True)
        assert number_in(shared) == 1
        assert number_in(tmp_path / "model.onnx") == number
        assert len(names(tmp_path)) == 4
    save(generation(4), tmp_path / "model.onnx", external=False)
    assert number_in(shared) == 1
    assert names(tmp_path) == FINAL | {"with_past.onnx"}


def test_a_long_name_is_recognized_in_the_model(tmp_path: Path) -> None:
    target = tmp_path / f"{'n' * 150}.onnx"
    save(generation(1), target, external=True)
    other = tmp_path / "other.onnx"
    other.write_bytes(target.read_bytes())
    save(generation(2), target, external=True)
    assert (number_in(target), number_in(other)) == (2, 1)


def test_a_file_system_without_links_keeps_the_tagged_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, target: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    save(generation(1), tmp_path, external=True)
    monkeypatch.setattr(Path, "symlink_to", refused)
    save(generation(2), tmp_path, external=True)
    assert number_in(tmp_path) == 2
    assert len(names(tmp_path)) == 2
    save(generation(3), tmp_path, external=True)
    assert number_in(tmp_path) == 3
    assert names(tmp_path) == FINAL


def test_files_of_others_stay(tmp_path: Path) -> None:
    for name in ("model.onnx.data.bak", "tokenizer.json", "model.onnx.0123456789ab.txt"):
        (tmp_path / name).write_text("mine")
    save(generation(1), tmp_path, external=True)
    save(generation(2), tmp_path, external=False)
    assert names(tmp_path) == {
        "model.onnx",
        "model.onnx.data.bak",
        "tokenizer.json",
        "model.onnx.0123456789ab.txt",
    }
