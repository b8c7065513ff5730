"""The cache: its place, and folders that are there whole or not at all."""

import pytest

from onnxq.runtime.cache import cache_folder, in_cache


def test_cache_folder_follows_the_platform_and_the_override(monkeypatch, tmp_path):
    monkeypatch.delenv("ONNXQ_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "onnxq"
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_a_folder_is_made_once_and_whole(tmp_path):
    place, runs = tmp_path / "cache" / "thing", []

    def make(scratch):
        runs.append(scratch)
        made = scratch / "files"
        made.mkdir()
        (made / "one").write_text("1")
        if len(runs) == 1:
            raise KeyboardInterrupt
        return made

    with pytest.raises(KeyboardInterrupt):
        in_cache(place, make)
    assert not place.exists()
    stale = place.parent / ".thing.partial-old"
    stale.mkdir()
    for _ in range(2):
        assert in_cache(place, make) == place
    assert (place / "one").read_text() == "1"
    assert len(runs) == 2
    assert not stale.exists()
