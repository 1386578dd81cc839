import os
import threading

import pytest

from atoms.activations.cache import ChunkCache, default_folder
from atoms.errors import AtomsError


def read(cache: ChunkCache, key: str, size: int, offset: int = 0) -> bytes | None:
    one, other = bytearray(size - 2), bytearray(2)
    found = cache.read_into(key, offset, memoryview(one), memoryview(other))
    return bytes(one + other) if found else None


def test_what_is_kept_comes_back_in_parts(tmp_path):
    cache = ChunkCache(tmp_path / "deep" / "cache", 1000)
    assert read(cache, "a", 4) is None
    cache.keep("a", b"0123456789")
    assert read(cache, "a", 10) == b"0123456789"
    assert read(cache, "a", 4, offset=3) == b"3456"
    assert read(cache, "a", 4, offset=8) is None  # too short
    assert read(ChunkCache(tmp_path / "deep" / "cache", 1000), "a", 3) == b"012"
    cache.keep("a", b"other")
    assert read(cache, "a", 5) == b"other"


def test_the_least_recently_used_goes_first(tmp_path):
    cache = ChunkCache(tmp_path, 320)
    for number in range(3):
        cache.keep(str(number), bytes(100))
        os.utime(cache._path(str(number)), (number, number))
    assert read(cache, "0", 100) is not None  # used just now
    cache.keep("3", bytes(100))
    assert [read(cache, str(number), 100) is not None for number in range(4)] == [True, False, True, True]


def test_it_never_holds_more_than_its_limit(tmp_path):
    cache = ChunkCache(tmp_path, 10_000)
    for number in range(300):
        cache.keep(str(number), bytes(137))
        held = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
        assert held <= 10_000
    assert held > 9_000


def test_what_is_larger_than_the_limit_leaves_nothing_else(tmp_path):
    cache = ChunkCache(tmp_path, 100)
    cache.keep("a", bytes(60))
    cache.keep("b", bytes(90))
    assert read(cache, "a", 60) is None


def test_threads_and_processes_share_a_folder(tmp_path):
    """Every entry is found whole or not at all, whoever writes and sweeps meanwhile."""
    caches = [ChunkCache(tmp_path, 5000) for _ in range(4)]
    torn = []

    def work(cache: ChunkCache, seed: int) -> None:
        for number in range(100):
            key = str((number * 7 + seed) % 20)
            content = key.encode() * 200
            found = read(cache, key, len(content))
            if found not in (None, content):
                torn.append(key)
            cache.keep(key, content)

    threads = [threading.Thread(target=work, args=(cache, seed)) for seed, cache in enumerate(caches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torn == []
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_that_cannot_be_written_only_costs_the_cache(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    cache = ChunkCache(tmp_path / "file", 1000)
    for _ in range(3):
        cache.keep("a", b"x" * 10)
        assert read(cache, "a", 10) is None
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"note     data.cache_dir {tmp_path}/file cannot be written")


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    for name in ("ATOMS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert str(default_folder()) == "/home/someone/.cache/atoms"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert str(default_folder()) == "/caches/atoms"
    monkeypatch.setenv("ATOMS_CACHE", "/mine")
    assert str(default_folder()) == "/mine"
    with pytest.raises(AtomsError, match=r"data\.cache_gib leaves 0 bytes"):
        ChunkCache(tmp_path, 0)
