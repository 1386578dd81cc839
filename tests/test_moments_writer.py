from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from stores import flip

from atoms.activations import moments_writer
from atoms.activations.grid import Grid, Span
from atoms.activations.location import LocalLocation
from atoms.activations.moments_writer import MomentsWriter
from atoms.activations.store import ActivationStore, StoreSpec, StoreWriter
from atoms.errors import AtomsError
from atoms.geometry import Moments

SITES = {"resid_post.1": 5, "mlp_out.0": 3}
CPU = torch.device("cpu")


def make_spec(dtype: str = "float32") -> StoreSpec:
    # 10 blocks of train, the last one short, and rows elsewhere that must not count
    return StoreSpec(SITES, dtype, {"train": 77, "val": 20}, Grid(4, 8, 8), seed=0)


def write(writer: StoreWriter, span: Span) -> None:
    generator = torch.Generator().manual_seed(100 * span.index + len(span.split))
    rows = {site: 3 + torch.randn(span.rows, width, generator=generator) for site, width in SITES.items()}
    none = np.full(span.rows, -1)
    writer.write_block(span, rows, token_id=none, doc_id=none, position=none)


def deal(spans: list[Span], world_size: int) -> list[list[Span]]:
    return [spans[rank::world_size] for rank in range(world_size)]


def run(path: Path, dtype: str = "float32", world_size: int = 1, stop_after: int | None = None) -> None:
    """Write what is pending as ``world_size`` ranks would, one after the other; stop like a kill after some blocks."""
    writer = StoreWriter.open(path, make_spec(dtype))
    shares = deal(writer.spec.spans, world_size)
    ranks = [MomentsWriter(writer, own, rank, world_size, CPU) for rank, own in enumerate(shares)]
    written = 0
    for moments, own in zip(ranks, shares, strict=True):
        for span in [span for span in own if span in writer.pending]:
            if written == stop_after:
                return
            write(writer, span)
            moments.after(span)
            written += 1
    for moments in ranks:
        moments.finish()
    ranks[0].pool()
    ranks[0].sweep()
    writer.finalise()


def assert_is(moments: Moments, rows: np.ndarray) -> None:
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.total.numpy(), rows.sum(0), rtol=1e-13)
    np.testing.assert_allclose(moments.outer.numpy(), rows.T @ rows, rtol=1e-13)


def final(path: Path) -> dict[str, Moments]:
    store = ActivationStore.open(path)
    return {site: store.moments(site) for site in SITES}


def same_bits(one: dict[str, Moments], other: dict[str, Moments]) -> bool:
    return all(
        torch.equal(one[site].outer, other[site].outer) and torch.equal(one[site].total, other[site].total)
        for site in SITES
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_they_are_the_moments_of_the_stored_training_rows(tmp_path, dtype):
    run(tmp_path / "s", dtype)
    store = ActivationStore.open(tmp_path / "s")
    for site, moments in final(tmp_path / "s").items():
        assert_is(moments, store.read_rows("train", site, 0, 77).double().numpy())


@pytest.mark.parametrize("stop_after", [0, 3, 8, 9, 11])
def test_a_kill_changes_no_bit(tmp_path, stop_after):
    run(tmp_path / "whole")
    run(tmp_path / "killed", stop_after=stop_after)
    run(tmp_path / "killed")
    assert same_bits(final(tmp_path / "whole"), final(tmp_path / "killed"))


def test_blocks_committed_after_the_last_save_are_counted_from_the_disk(tmp_path, monkeypatch):
    writer = StoreWriter.open(tmp_path / "s", make_spec())
    moments = MomentsWriter(writer, writer.spec.spans, 0, 1, CPU)
    for span in writer.spec.spans[:8]:
        write(writer, span)
        moments.after(span)
    write(writer, writer.spec.spans[8])  # killed between commit and count
    counted = []
    original = MomentsWriter._count
    monkeypatch.setattr(MomentsWriter, "_count", lambda self, span: (counted.append(span.index), original(self, span)))
    run(tmp_path / "s")
    assert counted == [8, 9]  # the eight that were saved are not read again
    run(tmp_path / "whole")
    assert same_bits(final(tmp_path / "whole"), final(tmp_path / "s"))


@pytest.mark.parametrize("worlds", [(1, 2), (2, 1), (3, 1), (2, 3)])
def test_another_number_of_ranks_goes_on(tmp_path, worlds, monkeypatch):
    monkeypatch.setattr(moments_writer, "BLOCKS_BETWEEN_SAVES", 2)
    begun, resumed = worlds
    run(tmp_path / "s", world_size=begun, stop_after=7)
    run(tmp_path / "s", world_size=resumed)
    store = ActivationStore.open(tmp_path / "s")
    for site, moments in final(tmp_path / "s").items():
        assert_is(moments, store.read_rows("train", site, 0, 77).double().numpy())


def test_more_ranks_than_blocks(tmp_path):
    run(tmp_path / "s", world_size=20)
    assert final(tmp_path / "s")["mlp_out.0"].count == 77


def files(folder: Path) -> Iterable[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_but_the_sums_of_all_ranks_is_left(tmp_path):
    run(tmp_path / "s", world_size=2, stop_after=6)
    run(tmp_path / "s")
    assert files(tmp_path / "s" / "moments") == ["mlp_out.0.safetensors", "resid_post.1.safetensors"]


def test_only_the_newest_sums_are_kept_while_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(moments_writer, "BLOCKS_BETWEEN_SAVES", 1)
    run(tmp_path / "s", stop_after=5)
    left = files(tmp_path / "s" / "moments" / "parts")
    assert left == [
        "mark-rank-0-of-1.json",
        "mlp_out.0-rank-0-of-1-5.safetensors",
        "resid_post.1-rank-0-of-1-5.safetensors",
    ]


def test_a_kill_while_sweeping_changes_nothing(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    original = LocalLocation.delete

    def killed(self: LocalLocation) -> None:
        original(self)
        if self.name.endswith(".safetensors") and (tmp_path / "s/moments/mlp_out.0.safetensors").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalLocation, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "s")
    assert not (tmp_path / "s" / "complete.json").exists()
    run(tmp_path / "s")
    assert same_bits(final(tmp_path / "whole"), final(tmp_path / "s"))
    assert files(tmp_path / "s" / "moments") == files(tmp_path / "whole" / "moments")


@pytest.mark.parametrize("spoiled", ["mark-rank-0-of-1.json", "mlp_out.0-rank-0-of-1-8.safetensors"])
@pytest.mark.parametrize("how", ["flip", "delete", "empty"])
def test_damaged_sums_are_summed_anew(tmp_path, spoiled, how):
    run(tmp_path / "whole")
    run(tmp_path / "s", stop_after=9)
    file = tmp_path / "s" / "moments" / "parts" / spoiled
    if how == "flip":
        flip(file, len(file.read_bytes()) - 3)
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()
    run(tmp_path / "s")
    assert same_bits(final(tmp_path / "whole"), final(tmp_path / "s"))


def test_a_rank_whose_sums_are_lost_is_not_left_out(tmp_path):
    writer = StoreWriter.open(tmp_path / "s", make_spec())
    ranks = [MomentsWriter(writer, own, rank, 2, CPU) for rank, own in enumerate(deal(writer.spec.spans, 2))]
    for span in writer.spec.spans:
        write(writer, span)
    ranks[0].finish()
    with pytest.raises(AtomsError, match="moments of rank 1 are lost or damaged; run the command again"):
        ranks[0].pool()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stop_after", [None, 9])
def test_rows_that_are_not_finite_do_not_count(tmp_path, monkeypatch, dtype, stop_after):
    """Whether the values come from memory or are read back after a kill."""
    original = StoreWriter.write_block

    def spoilt(self, span, rows, **tokens):
        if span.split == "train":
            rows["mlp_out.0"][2, 1] = float("nan")
            rows["mlp_out.0"][3, 0] = float("inf") if dtype != "float16" else 70000.0
        return original(self, span, rows, **tokens)

    monkeypatch.setattr(StoreWriter, "write_block", spoilt)
    if stop_after:
        run(tmp_path / "s", dtype, stop_after=stop_after)
    run(tmp_path / "s", dtype)
    store = ActivationStore.open(tmp_path / "s")
    counts = store.sealed.nonfinite["train"]
    assert (counts["mlp_out.0"].rows, counts["resid_post.1"].rows) == (20, 0)
    rows = store.read_rows("train", "mlp_out.0", 0, 77).double().numpy()
    assert_is(store.moments("mlp_out.0"), rows[np.isfinite(rows).all(1)])
    assert store.moments("resid_post.1").count == 77
