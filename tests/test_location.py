"""Directories and object stores behave alike."""

import pytest

from atoms.activations.location import LocalLocation, locate
from atoms.errors import AtomsError


@pytest.fixture(params=["directory", "s3"])
def place(request, tmp_path):
    return locate(tmp_path / "x" if request.param == "directory" else request.getfixturevalue("s3"))


def test_files(place):
    file = place / "a/b%2Fc:d"
    assert not place.exists()
    assert place.files() == {}
    with pytest.raises(FileNotFoundError):
        file.read()
    with pytest.raises(FileNotFoundError):
        file.size()
    with pytest.raises(FileNotFoundError):
        file.stamp()
    with pytest.raises(FileNotFoundError):
        file.read_into(0, memoryview(bytearray(1)))
    file.delete()
    file.write(b"first")
    file.write(memoryview(b"0123456789"))
    assert file.read() == b"0123456789"
    assert file.size() == 10
    assert file.exists()
    assert place.exists()
    assert file.name == "b%2Fc:d"
    (place / "e").write(b"")
    assert place.files() == {"a/b%2Fc:d": 10, "e": 0}
    assert len(place.files(limit=1)) >= 1
    assert place.children() == (["a"], ["e"])
    assert (place / "a").children() == ([], ["b%2Fc:d"])
    file.delete()
    assert not file.exists()


def test_ranges(place):
    (place / "f").write(b"0123456789")
    one, other = bytearray(3), bytearray(2)
    assert (place / "f").read_into(4, memoryview(one), memoryview(other))
    assert (one, other) == (b"456", b"78")
    for offset in (6, 10, 50):
        assert not (place / "f").read_into(offset, memoryview(one), memoryview(other))


def test_only_one_creates(place):
    file = (place / "s").beside(".lock")
    assert file.name == "s.lock"
    assert file.create(b"mine")
    assert not file.create(b"yours")
    content, modified, version = file.stamp()
    assert content == b"mine"
    assert modified > 1.7e9
    file.refresh(content, version)
    assert file.read() == b"mine"


def test_refreshing_what_another_wrote_meanwhile_changes_nothing(place):
    file = place / "lock"
    file.create(b"mine")
    content, _, version = file.stamp()
    file.write(b"another's")
    file.refresh(content, version)
    assert file.read() == b"another's"


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(locate("a/../b") / "c") == "a/../b/c"
    assert locate("b").absolute == str(tmp_path / "b")
    assert locate("b") == locate(tmp_path / "b")
    url = locate(f"file://{tmp_path}/with%20space/")
    assert isinstance(url, LocalLocation)
    assert url.path == tmp_path / "with space"
    assert str(url / "c") == f"file://{tmp_path}/with%20space/c"
    assert locate(url) is url


@pytest.mark.parametrize("url", ["s3://bucket/a/b", "gs://bucket/a/b", "http://127.0.0.1:1/a/b", "https://host/a/b/"])
def test_urls(url):
    place = locate(url)
    assert place.remote
    assert str(place) == place.absolute == url.rstrip("/")
    assert str(place / "c") == f"{url.rstrip('/')}/c"
    assert place.writable is url.startswith(("s3", "gs"))
    assert place.name == "b"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3:/bucket/x", r"needs two slashes"),
        ("s3://", r"names no bucket"),
        ("https:///x", r"names no host"),
        ("file://host/x", r"names an absolute path of this machine"),
        ("memory://x", r"data\.store=memory://…: unknown kind"),
        ("s3://key:secret@bucket/x", r"data\.store=s3://bucket/x: the URL carries more than a place"),
        ("http://host/x?token=secret", r"data\.store=http://host/x: the URL carries more"),
        ("http://host/x#secret", r"data\.store=http://host/x: the URL carries more"),
    ],
)
def test_what_is_no_place(url, message):
    with pytest.raises(AtomsError, match=message) as caught:
        locate(url)
    assert "secret" not in str(caught.value)
