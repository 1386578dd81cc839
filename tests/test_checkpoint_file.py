"""Checkpoint files: whole or absent, and refused where a byte has changed."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoms.errors import AtomsError
from atoms.training.checkpoint_file import SealedCheckpointIO, require_whole

CONTENT = {"weights": torch.arange(300.0), "nested": {"step": 3, "names": ["a", "b"]}}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("sealed") / "deep" / "step.ckpt"
    SealedCheckpointIO().save_checkpoint(CONTENT, path)
    assert [child.name for child in path.parent.iterdir()] == ["step.ckpt"]
    return path.read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "x.ckpt"


def test_is_an_archive_that_torch_reads_without_us(sealed, place):
    place.write_bytes(sealed)
    require_whole(place)
    for content in (
        torch.load(place, weights_only=True),
        torch.load(place, weights_only=True, mmap=True),
        SealedCheckpointIO().load_checkpoint(place, weights_only=True),
    ):
        assert torch.equal(content["weights"], CONTENT["weights"])
        assert content["nested"] == CONTENT["nested"]
    with zipfile.ZipFile(place) as archive:
        assert archive.comment.startswith(b"atoms sha256 ")
        assert archive.testzip() is None


@given(st.data())
def test_any_changed_byte_is_refused(sealed, place, data):
    damaged = bytearray(sealed)
    damaged[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    place.write_bytes(damaged)
    with pytest.raises(AtomsError, match=r"damaged|not a checkpoint"):
        require_whole(place)
    with pytest.raises(AtomsError):
        SealedCheckpointIO().load_checkpoint(place)


@given(st.data())
def test_any_cut_or_growth_is_refused(sealed, place, data):
    length = data.draw(st.integers(0, len(sealed) - 1))
    place.write_bytes(data.draw(st.sampled_from([sealed[:length], sealed[length + 1 :], sealed + sealed[length:]])))
    with pytest.raises(AtomsError, match=r"damaged|not a checkpoint"):
        require_whole(place)


def test_without_a_seal_it_is_refused(place):
    torch.save(CONTENT, place)
    with pytest.raises(AtomsError, match="was not written by `atoms fit`"):
        require_whole(place)


def test_failure_leaves_the_old_file(place):
    SealedCheckpointIO().save_checkpoint(CONTENT, place)
    before = place.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        SealedCheckpointIO().save_checkpoint({"weights": lambda: 0}, place)
    assert place.read_bytes() == before
    assert os.listdir(place.parent) == [place.name]


def test_one_line_where_it_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AtomsError, match=r"x\.ckpt: cannot be written \(.*\); set checkpoint\.dirpath"):
        SealedCheckpointIO().save_checkpoint(CONTENT, tmp_path / "file" / "x.ckpt")


def test_full_disk(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / ".x.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(AtomsError, match="disk full; checkpoints before it are whole"):
        SealedCheckpointIO().save_checkpoint(CONTENT, tmp_path / "x.ckpt")
    assert not list(tmp_path.iterdir())


def test_copies_keep_the_seal(sealed, place, tmp_path):
    place.write_bytes(sealed)
    require_whole(shutil.copy(place, tmp_path / "copy.ckpt"))
